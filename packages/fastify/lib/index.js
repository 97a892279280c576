'use strict'

// Extism plugins as routes of a Fastify app.

const fp = require('fastify-plugin')
const { codedError } = require('extism-host/internal')
const { addAdmin } = require('./admin.js')
const { Connections } = require('./connections.js')
const { addDocs, withDocs } = require('./docs.js')
const { addHealth } = require('./health.js')
const { addMetrics } = require('./metrics.js')
const { asOptions } = require('./options.js')
const { Plugins } = require('./plugins.js')
const { addRoutes } = require('./routes.js')
const { Triggers } = require('./triggers.js')

async function extismHost (fastify, options) {
  // Only an own property is an error: a nested scope may have a registration of its own.
  if (Object.hasOwn(fastify, 'extism')) {
    throw codedError('ALREADY_REGISTERED', 'extism-host/fastify is already registered in this scope; ' +
      'put all plugins into one registration, or register it again in a nested scope')
  }
  const check = (plugins) => asOptions({ ...options, plugins }, fastify.log)
  const { routes, store, health, metrics, admin, docs, prefix, closeTimeoutMs, connections: known, triggers: definitions } = check(options.plugins)
  const connections = new Connections(known, fastify.log)
  const plugins = await openPlugins(options.plugins, check, connections)
  const triggers = new Triggers(definitions, connections, plugins, fastify.log)
  // When all of the app is ready: messages may come at once.
  fastify.addHook('onReady', () => triggers.open())
  fastify.addHook('preClose', (done) => {
    plugins.endCallsAfter(closeTimeoutMs)
    // While the app closes its connections, its triggers finish their calls.
    triggers.close().catch((error) => fastify.log.error(error))
    done()
  })
  fastify.addHook('onClose', async () => {
    await triggers.close()
    await plugins.close()
    await connections.close()
  })
  fastify.decorate('extism', plugins)
  if (docs !== undefined) await addDocs(fastify, docs)
  const described = docs === undefined ? routes : routes.map(withDocs)
  // Scopes of their own, so that the app's other routes keep their parsers, and probes get none of the routes' hooks.
  fastify.register(async (scope) => addRoutes(scope, plugins, described), { prefix })
  fastify.register(async (scope) => {
    if (health !== undefined) addHealth(scope, health, plugins, triggers, connections)
    if (metrics !== undefined) addMetrics(scope, metrics, plugins, triggers)
    if (admin !== undefined) addAdmin(scope, admin, plugins, store)
  }, { prefix })
}

/** Opens the plugins with the functions of their connections. If one fails, closes the connections. */
async function openPlugins (descriptions, check, connections) {
  const define = (plugins) => {
    const { definitions, stores } = check(plugins)
    return { definitions: definitions.map((one) => ({ ...one, hostFunctions: () => connections.functionsOf(one) })), stores }
  }
  try {
    return await Plugins.open(descriptions, define)
  } catch (error) {
    await connections.close()
    throw error
  }
}

module.exports = fp(extismHost, { fastify: '5.x', name: 'extism-host' })
module.exports.default = module.exports
module.exports.extismHost = module.exports
