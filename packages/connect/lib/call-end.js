'use strict'

// The end of the work for a guest: its call has ended, or the host has no more time.

const { GuestError } = require('./protocol.js')

/**
 * Watches a call, for at most so many milliseconds. `signal` is aborted at the end, with a `GuestError` as its reason;
 * `dispose` stops watching.
 */
function watchEnd ({ signal }, milliseconds) {
  const ending = new AbortController()
  const end = (message) => ending.abort(new GuestError('TIMEOUT', message))
  const late = setTimeout(end, milliseconds, 'the host has no more time for this')
  const onCallEnd = () => end('the call has ended')
  signal.addEventListener('abort', onCallEnd, { once: true })
  if (signal.aborted) onCallEnd()
  return {
    signal: ending.signal,
    dispose () {
      clearTimeout(late)
      signal.removeEventListener('abort', onCallEnd)
    }
  }
}

/**
 * Settles as `promise` does, or rejects with the signal's reason as soon as that is aborted. If the
 * promise resolves later, `discard` gets its value.
 */
function untilAborted (signal, promise, discard) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason)
      promise.then(discard, () => {})
    }
    if (signal.aborted) {
      abort()
      return
    }
    signal.addEventListener('abort', abort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}

module.exports = { untilAborted, watchEnd }
