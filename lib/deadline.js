'use strict'

// Ends what takes too long, or what nobody waits for any more.

/**
 * Runs `work` with a signal, and settles as `work` does or as soon as that signal is aborted: when `signal`
 * is, or with `timeout()` after `milliseconds`.
 */
async function within ({ signal, milliseconds, timeout }, work) {
  signal?.throwIfAborted()
  const ending = new AbortController()
  const ended = new Promise((resolve, reject) => {
    ending.signal.addEventListener('abort', () => reject(ending.signal.reason))
  })
  const abort = () => ending.abort(signal.reason)
  signal?.addEventListener('abort', abort, { once: true })
  const timer = milliseconds && setTimeout(() => ending.abort(timeout()), milliseconds)
  try {
    return await Promise.race([ended, work(ending.signal)])
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', abort)
  }
}

module.exports = { within }
