'use strict'

// How a server opens its store when it starts.

const { setTimeout: sleep } = require('node:timers/promises')
const { openStore } = require('./store.js')

/** How long a server waits for its store unless it is told otherwise. */
const STORE_START_MS = 30_000

/** How long to wait before another attempt: twice as long each time. */
const FIRST_PAUSE_MS = 100
const LONGEST_PAUSE_MS = 5_000

/** Opens the store, and tries again while it is unavailable and `timeoutMs` are not over. */
async function openStoreInTime (url, options, timeoutMs, log) {
  const end = performance.now() + timeoutMs
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    try {
      return await openStore(url, options)
    } catch (error) {
      const left = end - performance.now()
      if (error.code !== 'STORE_UNAVAILABLE' || left <= 0) throw error
      log.warn(`waiting for the store: ${error.message}`)
      await sleep(Math.min(pause, left))
    }
  }
}

module.exports = { STORE_START_MS, openStoreInTime }
