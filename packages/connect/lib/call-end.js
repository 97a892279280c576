'use strict'

const { GuestError } = require('./protocol.js')

/**
 * Calls `onEnd` with an error for the guest when its call ends, or after so many milliseconds. Returns the function that
 * stops watching.
 */
function watchEnd ({ signal }, milliseconds, onEnd) {
  const end = (message) => {
    unwatch()
    onEnd(new GuestError('TIMEOUT', message))
  }
  const late = setTimeout(end, milliseconds, 'the host has no more time for this')
  const onAbort = () => end('the call has ended')
  const unwatch = () => {
    clearTimeout(late)
    signal.removeEventListener('abort', onAbort)
  }
  signal.addEventListener('abort', onAbort)
  return unwatch
}

module.exports = { watchEnd }
