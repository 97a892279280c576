'use strict'

// Deadlines and cancellation for asynchronous work.

/**
 * Runs `work` with a signal of its own, and settles as `work` does. If `signal` is aborted, or `milliseconds` pass
 * first, it aborts the work's signal and rejects at once, with the reason of `signal` or with `timeout()`.
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
