'use strict'

const INTERVAL_MS = 500

/**
 * Calls `callback` when the npx that started this process has exited: on SIGTERM, npx ends the shell in between and
 * leaves this process running. Under other parents it does nothing, because they may exit before their children.
 */
function onNpxExit (callback) {
  if (process.env.npm_command !== 'exec') return
  const { ppid } = process
  const timer = setInterval(() => {
    if (process.ppid === ppid) return
    clearInterval(timer)
    callback()
  }, INTERVAL_MS).unref()
}

module.exports = { onNpxExit }
