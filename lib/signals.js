'use strict'

// A listener for one of these signals displaces the handler that makes errors of plugins' traps. So the native
// part puts its handler back after each change, and passes on to listeners what is not a plugin's, if there
// are any.

const SIGNALS = ['SIGSEGV', 'SIGILL', 'SIGFPE', 'SIGBUS']

let isWatching = false

/**
 * Calls `putBack` with the signals that have listeners, now and after each change of the listeners for these
 * signals. Only the first call counts.
 */
function watchSignalListeners (putBack) {
  const { isMainThread } = require('node:worker_threads')
  // In a worker thread, listeners install no handlers. Bun has no libuv, and ends the process if it is used.
  if (isWatching || !isMainThread || process.platform === 'win32' || process.versions.bun !== undefined) return
  isWatching = true

  const update = (added) => putBack(SIGNALS.filter((signal) => signal === added || process.listenerCount(signal) > 0))
  // Node installs and removes handlers in listeners of its own for these two events, which are older
  // than ours, so the change has taken effect already. The second time is for a Node that does it later.
  const onChange = (event, added) => {
    if (!SIGNALS.includes(event)) return
    update(added)
    process.nextTick(update)
  }
  process.on('newListener', (event) => onChange(event, event))
  process.on('removeListener', (event) => onChange(event))
  update()
}

module.exports = { watchSignalListeners }
