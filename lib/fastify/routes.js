'use strict'

// The routes that run functions of plugins.

const { asHttpError } = require('./errors.js')

/** Has the scope hand over each body as its bytes, whatever its type is said to be, or misspelt. */
function takeAnyBody (scope) {
  scope.addHook('onRequest', (request, reply, done) => {
    // Fastify would refuse a type that it cannot read.
    if (request.headers['content-type'] !== undefined && !isReadable(request.mediaType)) delete request.headers['content-type']
    done()
  })
  scope.removeAllContentTypeParsers()
  scope.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))
}

function isReadable (mediaType) {
  return mediaType !== undefined && mediaType.length > 1
}

/** A handler that runs a function on the body, and answers with its output. */
function rawHandler (plugin, { functionName, contentType, timeoutMs }) {
  return async function handler (request, reply) {
    const output = await callFor(plugin, functionName, request.body, request, timeoutMs)
    reply.type(contentType)
    return output === null ? '' : output.bytes()
  }
}

async function callFor (plugin, functionName, input, request, timeoutMs) {
  try {
    return await plugin.call(functionName, input, request, { timeoutMs, logger: request.log })
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
