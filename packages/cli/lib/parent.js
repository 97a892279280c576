'use strict'

const INTERVAL_MS = 500

/**
 * Calls `onGone` when npx, which has started this process, is gone: on SIGTERM it ends the shell between them, and leaves
 * this process running. Other parents may end without their children.
 */
function whenNpxIsGone (onGone) {
  if (process.env.npm_command !== 'exec') return
  const { ppid } = process
  const timer = setInterval(() => {
    if (process.ppid === ppid) return
    clearInterval(timer)
    onGone()
  }, INTERVAL_MS).unref()
}

module.exports = { whenNpxIsGone }
