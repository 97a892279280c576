'use strict'

// What orchestrators ask: whether the process lives, and whether it can serve.

const { setTimeout: sleep } = require('node:timers/promises')
const { codedError } = require('../errors.js')

const STORE_MILLISECONDS = 1_000

/** Rejects where a store does not answer in time. */
async function askStore (store) {
  const answered = new AbortController()
  const tooLate = sleep(STORE_MILLISECONDS, undefined, { signal: answered.signal }).then(() => {
    throw codedError('STORE_UNAVAILABLE', `the store has not answered within ${STORE_MILLISECONDS} ms`)
  })
  try {
    await Promise.race([store.has(''), tooLate])
  } finally {
    tooLate.catch(() => {})
    answered.abort()
  }
}

async function askPlugin (plugin) {
  if (!await plugin.isOpen()) throw codedError('CLOSED', 'a plugin is closed')
}

async function statusOf (checks, log) {
  const failed = (await Promise.allSettled(checks)).filter(({ status }) => status === 'rejected')
  for (const { reason } of failed) log.warn(reason, 'not ready')
  return failed.length === 0 ? 'ok' : 'unavailable'
}

function addHealth (scope, { prefix }, plugins) {
  // Of no interest to who reads the log or the API's documentation.
  const options = { logLevel: 'warn', schema: { hide: true } }

  scope.get(`${prefix}/live`, options, async () => ({ status: 'ok' }))

  scope.get(`${prefix}/ready`, options, async (request, reply) => {
    if (plugins.isDraining) {
      reply.code(503).header('cache-control', 'no-store')
      return { status: 'draining' }
    }
    const [ofPlugins, ofStore] = await Promise.all([
      statusOf(plugins.names.map((name) => askPlugin(plugins.plugin(name))), request.log),
      statusOf(plugins.stores.map(askStore), request.log)
    ])
    const isReady = ofPlugins === 'ok' && ofStore === 'ok'
    reply.code(isReady ? 200 : 503).header('cache-control', 'no-store')
    return { status: isReady ? 'ok' : 'unavailable', plugins: ofPlugins, store: ofStore }
  })
}

module.exports = { addHealth }
