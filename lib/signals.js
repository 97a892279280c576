'use strict'

// A listener for one of these signals displaces the handler that makes errors of plugins' traps, and
// removing the last listener leaves none. So the native part puts its handler back after each change.

const SIGNALS = new Set(['SIGSEGV', 'SIGILL', 'SIGFPE', 'SIGBUS'])

let isWatching = false

/** Calls `putBack` after each change of the listeners for these signals. Only the first call counts. */
function watchSignalListeners (putBack) {
  const { isMainThread } = require('node:worker_threads')
  // In a worker thread, listeners install no handlers.
  if (isWatching || !isMainThread || process.platform === 'win32') return
  isWatching = true

  // Node installs and removes handlers in listeners of its own for these two events, which are older
  // than ours, so the change has taken effect already. The second time is for a Node that does it later.
  const onChange = (event) => {
    if (!SIGNALS.has(event)) return
    putBack()
    process.nextTick(putBack)
  }
  process.on('newListener', onChange)
  process.on('removeListener', onChange)
}

module.exports = { watchSignalListeners }
