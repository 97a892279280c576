'use strict'

// What orchestrators ask: whether the process lives, and whether it can serve.

const { setTimeout: sleep } = require('node:timers/promises')
const { codedError } = require('extism-host/internal')

const STORE_MILLISECONDS = 1_000

/** The key that is written to find out whether a full store has room again. */
const PROBE_KEY = 'extism-host:probe'

/** Rejects if a store does not answer in time, or with why it fails. */
async function inTime (answer) {
  const answered = new AbortController()
  const tooLate = sleep(STORE_MILLISECONDS, undefined, { signal: answered.signal }).then(() => {
    throw codedError('STORE_UNAVAILABLE', `the store has not answered within ${STORE_MILLISECONDS} ms`)
  })
  try {
    await Promise.race([answer, tooLate])
  } finally {
    tooLate.catch(() => {})
    answered.abort()
  }
}

/** Rejects if a store is full. That it may not be written for another reason does not count. */
async function tryToWrite (store) {
  try {
    await store.set(PROBE_KEY, '', { ttlMs: STORE_MILLISECONDS })
  } catch (error) {
    if (error.code === 'STORE_FULL') throw error
    return
  }
  await store.delete(PROBE_KEY)
}

/** Asks stores whether they can serve. They are written only after a guest was told that its store is full, until there is room again. */
class StoreChecks {
  #plugins
  #failures = 0
  #isSuspect = false

  constructor (plugins) {
    this.#plugins = plugins
  }

  run () {
    const { names, stores } = this.#plugins
    const failures = names.reduce((sum, name) => sum + (this.#plugins.plugin(name).stats().store.failed.STORE_FULL ?? 0), 0)
    if (failures !== this.#failures) this.#isSuspect = true
    this.#failures = failures
    if (!this.#isSuspect) return stores.map((store) => inTime(store.has('')))
    const checks = stores.map((store) => inTime(tryToWrite(store)))
    Promise.all(checks).then(() => { this.#isSuspect = false }, () => {})
    return checks
  }
}

async function statusOf (checks, log) {
  const failed = (await Promise.allSettled(checks)).filter(({ status }) => status === 'rejected')
  for (const { reason } of failed) log.warn(reason, 'not ready')
  return failed.length === 0 ? 'ok' : 'unavailable'
}

/**
 * The options of routes that machines ask again and again: of no interest to who reads the log or the API's documentation,
 * and not to be refused by @fastify/rate-limit.
 */
function probeOptions (config) {
  return { logLevel: 'warn', schema: { hide: true }, config: { rateLimit: false, ...config } }
}

function addHealth (scope, { prefix, config }, plugins) {
  plugins.noteRefusals()
  const storeChecks = new StoreChecks(plugins)
  const options = probeOptions(config)

  scope.get(`${prefix}/live`, options, async () => ({ status: 'ok' }))

  scope.get(`${prefix}/ready`, options, async (request, reply) => {
    if (plugins.isDraining) {
      reply.code(503).header('cache-control', 'no-store')
      return { status: 'draining' }
    }
    const [ofPlugins, ofStore] = await Promise.all([
      statusOf(plugins.names.map((name) => plugins.plugin(name).checkReady()), request.log),
      statusOf(storeChecks.run(), request.log)
    ])
    const isReady = ofPlugins === 'ok' && ofStore === 'ok'
    reply.code(isReady ? 200 : 503).header('cache-control', 'no-store')
    return { status: isReady ? 'ok' : 'unavailable', plugins: ofPlugins, store: ofStore }
  })
}

module.exports = { addHealth, probeOptions }
