'use strict'

// SIGHUP kills a process that does not handle it, so this is loaded before anything that takes time.

let listener
let isPending = false

process.on('SIGHUP', () => {
  if (listener === undefined) isPending = true
  else listener()
})

/** Calls `run` on each SIGHUP, and at once if one has already arrived. */
function onHangup (run) {
  listener = run
  if (isPending) run()
}

module.exports = { onHangup }
