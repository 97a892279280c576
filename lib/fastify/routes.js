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
  scope.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))
}

/** A handler that runs a function on the body, and answers with its output. */
function rawHandler (plugin, { functionName, contentType = 'application/octet-stream', timeoutMs }) {
  return async function handler (request, reply) {
    const output = await callFor(plugin, functionName, request.body, request, reply, timeoutMs)
    reply.type(contentType)
    return output === null ? '' : output.bytes()
  }
}

/** A handler that runs a function on the request, and answers as its output says. */
function httpHandler (plugin, { functionName, contentType, timeoutMs }) {
  return async function handler (request, reply) {
    const output = await callFor(plugin, functionName, requestAsJson(request), request, reply, timeoutMs)
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

/** Runs a function for a request: host functions find it as their context, messages go to its log. */
async function callFor (plugin, functionName, input, request, reply, timeoutMs) {
  try {
    return await plugin.call(functionName, input, request, { timeoutMs, logger: request.log, signal: new ClientSignal(reply.raw) })
  } catch (error) {
    throw asHttpError(error)
  }
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
