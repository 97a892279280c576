'use strict'

// Routes that run functions of plugins.

const { ClientSignal } = require('./client-signal.js')
const { BadPluginResponse, asHttpError, nameCallInLog } = require('./errors.js')
const { parseAnswer, requestAsJson } = require('./http-messages.js')

const DEFAULT_TYPE = 'application/octet-stream'

/** Makes the scope pass every body as bytes, whatever its content-type, even a malformed one. */
function acceptAnyBody (scope) {
  scope.addHook('onRequest', (request, reply, done) => {
    const { headers } = request
    // Fastify rejects a malformed content-type, but accepts a body without one.
    if (headers['content-type'] !== undefined && request.mediaType === undefined) delete headers['content-type']
    done()
  })
  scope.removeAllContentTypeParsers()
  // '*' is for bodies without a type. Types match the regular expression, because Fastify caches its matches, and
  // would look '*' up again for each request.
  scope.addContentTypeParser([/^/, '*'], { parseAs: 'buffer' }, (request, body, done) => done(null, body))
}

/** Returns a handler that runs a function on the body, and responds with its output. */
function rawHandler (plugin, { plugin: pluginName, functionName, contentType = DEFAULT_TYPE, timeoutMs, errors, inputOf }) {
  return async function handler (request, reply) {
    let output
    try {
      output = await plugin.call(functionName, inputOf(request), request, optionsFor(request, reply, timeoutMs))
    } catch (error) {
      nameCallInLog(request, reply, pluginName, functionName, error)
      throw asHttpError(error, errors)
    }
    reply.type(contentType)
    return output === null ? '' : output.bytes()
  }
}

/** Returns a handler that runs a function on the request as JSON, and responds as its output says. */
function httpHandler (plugin, { plugin: pluginName, functionName, contentType, timeoutMs, errors, inputOf }) {
  return async function handler (request, reply) {
    let output
    try {
      output = await plugin.call(functionName, requestAsJson(request, inputOf(request)), request, optionsFor(request, reply, timeoutMs))
    } catch (error) {
      nameCallInLog(request, reply, pluginName, functionName, error)
      throw asHttpError(error, errors)
    }
    const { status, headers, body, defaultType } = responseOf(output)
    const isEmpty = body.length === 0
    if (!isEmpty) reply.type(contentType ?? defaultType)
    return reply.code(status).headers(headers).send(isEmpty ? undefined : body)
  }
}

function responseOf (output) {
  try {
    return parseAnswer(output)
  } catch (cause) {
    throw new BadPluginResponse({ cause })
  }
}

/** The call options of a request: messages go to the request's log, and the call ends if the client disconnects. */
function optionsFor (request, reply, timeoutMs) {
  return { timeoutMs, logger: request.log, signal: new ClientSignal(reply.raw) }
}

const HANDLERS = { raw: rawHandler, http: httpHandler }

const isJson = (mediaType) => /[/+]json$/i.test(mediaType)

/** The bytes of a validated body. JSON is serialized again, so that the guest reads exactly the validated data. */
function validatedInput ({ body, mediaType = '' }) {
  if (body === undefined) return undefined
  if (Buffer.isBuffer(body)) return body
  return Buffer.from(typeof body !== 'string' || isJson(mediaType) ? JSON.stringify(body) : body)
}

/** The response of a route, for the API's documentation. */
function outputResponse ({ contentType = DEFAULT_TYPE, functionName }, outputSchema) {
  const mediaType = contentType.split(';')[0].trim()
  // A hook may also answer in place of the plugin: JSON can be anything.
  const content = { [mediaType]: { schema: outputSchema ?? (isJson(mediaType) ? {} : { type: 'string' }) } }
  return { description: `The output of ${functionName}`, content }
}

/** The schema of a route, with the content type of its response, for the API's documentation. */
function schemaOf (route) {
  const { contentType, fastify: { schema } } = route
  if (contentType === undefined || schema?.response !== undefined) return schema
  return { ...schema, response: { 200: outputResponse(route) } }
}

function addRoute (scope, plugins, route, inputOf) {
  const { method, url, mode, bodyLimit, fastify } = route
  const handler = HANDLERS[mode](plugins.plugin(route.plugin), { ...route, inputOf })
  scope.route({ ...fastify, method, url, bodyLimit, schema: schemaOf(route), handler })
}

const isValidated = ({ fastify: { schema } }) => schema?.body !== undefined

/** Adds the routes. Those with a body schema use the app's parsers; the others accept any bytes. */
function addRoutes (scope, plugins, routes) {
  for (const route of routes.filter(isValidated)) addRoute(scope, plugins, route, validatedInput)
  scope.register(async (scope) => {
    acceptAnyBody(scope)
    for (const route of routes) if (!isValidated(route)) addRoute(scope, plugins, route, ({ body }) => body)
  })
}

module.exports = { addRoutes, acceptAnyBody, isValidated, outputResponse }
