'use strict'

// The routes that run functions of plugins.

const { ClientSignal } = require('./client-signal.js')
const { BadPluginResponse, asHttpError } = require('./errors.js')
const { answerOf, requestAsJson } = require('./http-messages.js')

/** Has the scope hand over each body as its bytes, whatever its type is said to be, or misspelt. */
function takeAnyBody (scope) {
  scope.addHook('onRequest', (request, reply, done) => {
    const { headers } = request
    // Fastify refuses a type that it cannot read, but takes a body without one.
    if (headers['content-type'] !== undefined && request.mediaType === undefined) delete headers['content-type']
    done()
  })
  scope.removeAllContentTypeParsers()
  // The second is for bodies without a type. Fastify remembers which types the first is for, and would look for
  // the second anew in each request.
  scope.addContentTypeParser([/^/, '*'], { parseAs: 'buffer' }, (request, body, done) => done(null, body))
}

/** A handler that runs a function on the body, and answers with its output. */
function rawHandler (plugin, { functionName, contentType = 'application/octet-stream', timeoutMs }) {
  return async function handler (request, reply) {
    let output
    try {
      output = await plugin.call(functionName, request.body, request, optionsFor(request, reply, timeoutMs))
    } catch (error) {
      throw asHttpError(error)
    }
    reply.type(contentType)
    return output === null ? '' : output.bytes()
  }
}

/** A handler that runs a function on the request, and answers as its output says. */
function httpHandler (plugin, { functionName, contentType, timeoutMs }) {
  return async function handler (request, reply) {
    let output
    try {
      output = await plugin.call(functionName, requestAsJson(request), request, optionsFor(request, reply, timeoutMs))
    } catch (error) {
      throw asHttpError(error)
    }
    const { status, headers, body, defaultType } = checkedAnswer(output)
    const isEmpty = body.length === 0
    if (!isEmpty) reply.type(contentType ?? defaultType)
    return reply.code(status).headers(headers).send(isEmpty ? undefined : body)
  }
}

function checkedAnswer (output) {
  try {
    return answerOf(output)
  } catch (cause) {
    throw new BadPluginResponse({ cause })
  }
}

/** The options of a request's call: its messages go to the request's log, and it ends when the client goes away. */
function optionsFor (request, reply, timeoutMs) {
  return { timeoutMs, logger: request.log, signal: new ClientSignal(reply.raw) }
}

const HANDLERS = { raw: rawHandler, http: httpHandler }

function addRoutes (scope, plugins, routes) {
  takeAnyBody(scope)
  for (const route of routes) {
    const { method, url, mode, bodyLimit, schema } = route
    const handler = HANDLERS[mode](plugins.plugin(route.plugin), route)
    scope.route({ method, url, bodyLimit, schema, handler })
  }
}

module.exports = { addRoutes }
