'use strict'

const { setTimeout: sleep } = require('node:timers/promises')

/** Resolves like a reply, or rejects with `tooLateError()` after these milliseconds. */
async function inTime (reply, milliseconds, tooLateError) {
  const answered = new AbortController()
  const tooLate = sleep(milliseconds, undefined, { signal: answered.signal }).then(() => { throw tooLateError() })
  try {
    return await Promise.race([reply, tooLate])
  } finally {
    tooLate.catch(() => {})
    answered.abort()
  }
}

module.exports = { inTime }
