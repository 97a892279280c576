'use strict'

const { onCallEnd } = require('extism-host/internal')
const { GuestError } = require('./protocol.js')

/**
 * Calls `onEnd` with an error for the guest when its call ends, or after so many milliseconds. Returns the function that
 * stops watching.
 */
function watchEnd (context, milliseconds, onEnd) {
  const unwatch = () => {
    clearTimeout(late)
    onCallEnd(context, undefined)
  }
  const end = (message) => {
    unwatch()
    onEnd(new GuestError('TIMEOUT', message))
  }
  const late = setTimeout(end, milliseconds, 'the host has no more time for this')
  onCallEnd(context, () => end('the call has ended'))
  return unwatch
}

/**
 * Settles as the promise of `work` does, or rejects when the call ends or the time is over. `work` goes on then; it gets a function
 * that tells whether nobody waits for it any more.
 */
function inTime (context, milliseconds, work) {
  return new Promise((resolve, reject) => {
    let isOver = false
    const unwatch = watchEnd(context, milliseconds, (error) => {
      isOver = true
      reject(error)
    })
    work(() => isOver).then(resolve, reject).finally(unwatch)
  })
}

module.exports = { inTime, watchEnd }
