'use strict'

// Tells a host function that its call has ended, by its deadline or because it was aborted.

const { GuestError } = require('./protocol.js')

/** How often to check. A host function is not told that its call has ended; its context throws from then on. */
const CHECK_MS = 20

const watched = new Map()
let timer

function check () {
  for (const [context, end] of watched) {
    try {
      // Of all that a context offers, this alone never asks the guest's thread.
      context.getVariable('')
    } catch {
      end()
    }
  }
}

/**
 * Watches a call, for at most so many milliseconds. `signal` is aborted at the end, with a `GuestError` as its reason;
 * `dispose` stops watching.
 */
function watchEnd (context, milliseconds) {
  const ending = new AbortController()
  const end = (reason) => {
    dispose()
    ending.abort(reason)
  }
  const late = setTimeout(() => end(new GuestError('TIMEOUT', 'the host has no more time for this')), milliseconds)
  const dispose = () => {
    clearTimeout(late)
    watched.delete(context)
    if (watched.size > 0) return
    clearInterval(timer)
    timer = undefined
  }
  watched.set(context, () => end(new GuestError('TIMEOUT', 'the call has ended')))
  timer ??= setInterval(check, CHECK_MS)
  return { signal: ending.signal, dispose }
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
