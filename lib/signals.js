'use strict'

// A listener for one of these signals displaces the native handler that turns a plugin's trap into an error. So the
// addon reinstalls its handler after each change, and passes signals that no plugin caused on to the listeners.

const SIGNALS = ['SIGSEGV', 'SIGILL', 'SIGFPE', 'SIGBUS']

let isWatching = false

/**
 * Calls `restore` with the signals that have listeners, now and after each change of the listeners for these
 * signals. Only the first call counts.
 */
function watchSignalListeners (restore) {
  const { isMainThread } = require('node:worker_threads')
  // Listeners in worker threads install no handlers. Bun has no libuv, and ends the process if libuv is used.
  if (isWatching || !isMainThread || process.platform === 'win32' || process.versions.bun !== undefined) return
  isWatching = true

  const update = (added) => restore(SIGNALS.filter((signal) => signal === added || process.listenerCount(signal) > 0))
  // Node installs and removes its handlers in its own listeners for these two events. They run before ours, so the
  // change has taken effect. The second update is for a version of Node that does it later.
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
