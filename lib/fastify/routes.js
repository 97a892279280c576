'use strict'

// The routes that run functions of plugins.

const { ClientSignal } = require('./client-signal.js')
const { asHttpError } = require('./errors.js')

/** Has the scope hand over each body as its bytes, whatever its type is said to be, or misspelt. */
function takeAnyBody (scope) {
  scope.addHook('onRequest', (request, reply, done) => {
    const { headers } = request
    // Fastify refuses a type that it cannot read, but takes a body without one.
    if (headers['content-type'] !== undefined && request.mediaType === undefined) delete headers['content-type']
    done()
  })
  scope.removeAllContentTypeParsers()
  scope.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))
}

/** A handler that runs a function on the body, and answers with its output. */
function rawHandler (plugin, { functionName, contentType, timeoutMs }) {
  return async function handler (request, reply) {
    const output = await callFor(plugin, functionName, request.body, request, reply, timeoutMs)
    reply.type(contentType)
    return output === null ? '' : output.bytes()
  }
}

/** Runs a function for a request: host functions find it as their context, messages go to its log. */
async function callFor (plugin, functionName, input, request, reply, timeoutMs) {
  try {
    return await plugin.call(functionName, input, request, { timeoutMs, logger: request.log, signal: new ClientSignal(reply.raw) })
  } catch (error) {
    throw asHttpError(error)
  }
}

function addRoutes (scope, plugins, routes) {
  takeAnyBody(scope)
  for (const route of routes) {
    const { method, url, bodyLimit, schema } = route
    scope.route({ method, url, bodyLimit, schema, handler: rawHandler(plugins.plugin(route.plugin), route) })
  }
}

module.exports = { addRoutes }
