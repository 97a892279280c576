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
function rawHandler (plugin, { functionName, contentType = 'application/octet-stream', timeoutMs, errors, inputOf }) {
  return async function handler (request, reply) {
    let output
    try {
      output = await plugin.call(functionName, inputOf(request), request, optionsFor(request, reply, timeoutMs))
    } catch (error) {
      throw asHttpError(error, errors)
    }
    reply.type(contentType)
    return output === null ? '' : output.bytes()
  }
}

/** A handler that runs a function on the request, and answers as its output says. */
function httpHandler (plugin, { functionName, contentType, timeoutMs, errors, inputOf }) {
  return async function handler (request, reply) {
    let output
    try {
      output = await plugin.call(functionName, requestAsJson(request, inputOf(request)), request, optionsFor(request, reply, timeoutMs))
    } catch (error) {
      throw asHttpError(error, errors)
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

const isJson = (mediaType) => /[/+]json$/i.test(mediaType)

/** The bytes of a body that was parsed and validated. JSON is written anew, so that the guest reads what was validated. */
function validatedInput ({ body, mediaType = '' }) {
  if (body === undefined) return undefined
  if (Buffer.isBuffer(body)) return body
  return Buffer.from(typeof body !== 'string' || isJson(mediaType) ? JSON.stringify(body) : body)
}

/** The schema of a route, with the type of its answer for those who document the app. */
function schemaOf ({ contentType, functionName, fastify: { schema } }) {
  if (contentType === undefined || schema?.response !== undefined) return schema
  const mediaType = contentType.split(';')[0].trim()
  // A hook may also answer in place of the plugin: JSON can be anything.
  const content = { [mediaType]: { schema: isJson(mediaType) ? {} : { type: 'string' } } }
  return { ...schema, response: { 200: { description: `The output of ${functionName}`, content } } }
}

function addRoute (scope, plugins, route, inputOf) {
  const { method, url, mode, bodyLimit, fastify } = route
  const handler = HANDLERS[mode](plugins.plugin(route.plugin), { ...route, inputOf })
  scope.route({ ...fastify, method, url, bodyLimit, schema: schemaOf(route), handler })
}

/** Routes whose body is validated need the app's parsers. The others take any bytes. */
function addRoutes (scope, plugins, routes) {
  const isValidated = ({ fastify: { schema } }) => schema?.body !== undefined
  for (const route of routes.filter(isValidated)) addRoute(scope, plugins, route, validatedInput)
  scope.register(async (scope) => {
    takeAnyBody(scope)
    for (const route of routes) if (!isValidated(route)) addRoute(scope, plugins, route, ({ body }) => body)
  })
}

module.exports = { addRoutes, takeAnyBody }
