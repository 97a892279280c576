'use strict'

// Opens a server's store at the start, with retries.

const { setTimeout: sleep } = require('node:timers/promises')
const { openStore } = require('./store.js')

/** By default, a server waits this long for its store. */
const STORE_START_MS = 30_000

/** The pause before the first retry; it doubles after each. */
const FIRST_PAUSE_MS = 100
const LONGEST_PAUSE_MS = 5_000

/** Opens the store. While it is unavailable, retries until `timeoutMs` have passed. */
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
