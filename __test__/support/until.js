'use strict'

const { setTimeout: sleep } = require('node:timers/promises')

const LIMIT_MS = 60_000

/** Resolves once the condition holds. It has a limit, so that it does not outlive a test that fails. */
async function until (isSo) {
  const deadline = Date.now() + LIMIT_MS
  while (!await isSo()) {
    if (Date.now() > deadline) throw new Error(`the condition does not hold within ${LIMIT_MS} ms`)
    await sleep(5)
  }
}

module.exports = { until }
