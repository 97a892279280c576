'use strict'

// SIGHUP kills a process that does not handle it: this is loaded before all that takes time to load or to start.

let listener
let isPending = false

process.on('SIGHUP', () => {
  if (listener === undefined) isPending = true
  else listener()
})

/** Calls `run` at each SIGHUP, and at once if there was one already. */
function onHangup (run) {
  listener = run
  if (isPending) run()
}

module.exports = { onHangup }
