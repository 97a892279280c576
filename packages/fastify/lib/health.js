'use strict'

// Health checks for orchestrators: liveness and readiness.

const { codedError } = require('extism-host/internal')
const { inTime } = require('./in-time.js')

const CHECK_MILLISECONDS = 1_000

/** The key that is written to check whether a full store has space again. */
const PROBE_KEY = 'extism-host:probe'

const storeInTime = (reply) => inTime(reply, CHECK_MILLISECONDS, () => codedError('STORE_UNAVAILABLE', `the store did not respond within ${CHECK_MILLISECONDS} ms`))

const brokerInTime = (reply) => inTime(reply, CHECK_MILLISECONDS, () => codedError('UNAVAILABLE', `the broker of a trigger did not respond within ${CHECK_MILLISECONDS} ms`))

/** Rejects if a store is full. Other errors of the write do not matter here. */
async function writeProbe (store) {
  try {
    await store.set(PROBE_KEY, '', { ttlMs: CHECK_MILLISECONDS })
  } catch (error) {
    if (error.code === 'STORE_FULL') throw error
    return
  }
  await store.delete(PROBE_KEY)
}

/** Checks whether stores can serve. It writes only after a guest got STORE_FULL, until the store has space again. */
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
    if (!this.#isSuspect) return stores.map((store) => storeInTime(store.has('')))
    const checks = stores.map((store) => storeInTime(writeProbe(store)))
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
 * The options of routes that machines poll: hidden from the log and the API's documentation, without a rate limit, and
 * served by a process that @fastify/under-pressure finds overloaded, because to restart it would make things worse.
 */
function probeOptions (config) {
  return { logLevel: 'warn', schema: { hide: true }, config: { rateLimit: false, pressureHandler: () => {}, ...config } }
}

function addHealth (scope, { prefix, config }, plugins, triggers, connections) {
  plugins.trackUnavailable()
  const storeChecks = new StoreChecks(plugins)
  const options = probeOptions(config)

  scope.get(`${prefix}/live`, options, async () => ({ status: 'ok' }))

  // An overloaded process is not ready: its load balancer should choose another one.
  scope.get(`${prefix}/ready`, { ...options, config: { ...options.config, pressureHandler: config?.pressureHandler } }, async (request, reply) => {
    if (plugins.isDraining) {
      reply.code(503).header('cache-control', 'no-store')
      return { status: 'draining' }
    }
    const [pluginStatus, storeStatus, triggerStatus, connectionStatus] = await Promise.all([
      statusOf(plugins.names.map((name) => plugins.plugin(name).checkReady()), request.log),
      statusOf(storeChecks.run(), request.log),
      statusOf(triggers.list.map(({ trigger }) => brokerInTime(trigger.checkReady())), request.log),
      statusOf(connections.checkReady(), request.log)
    ])
    const isReady = [pluginStatus, storeStatus, triggerStatus, connectionStatus].every((status) => status === 'ok')
    reply.code(isReady ? 200 : 503).header('cache-control', 'no-store')
    return {
      status: isReady ? 'ok' : 'unavailable',
      plugins: pluginStatus,
      store: storeStatus,
      ...(triggers.list.length > 0 && { triggers: triggerStatus }),
      ...(connections.hasGuests && { connections: connectionStatus })
    }
  })
}

module.exports = { addHealth, probeOptions }
