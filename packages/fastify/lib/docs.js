'use strict'

// The API page: @fastify/swagger describes the routes, @fastify/swagger-ui shows them.

const { codedError } = require('extism-host/internal')
const { codesByStatus } = require('./errors.js')
const { canHaveBody } = require('./options.js')
const { isValidated, outputResponse } = require('./routes.js')

/** The body of a raw request. In the page, text gets a box to type into, and bytes a button to choose a file. */
const ANY_BODY = {
  content: {
    'text/plain': { schema: { type: 'string' } },
    'application/octet-stream': { schema: { type: 'string', format: 'binary' } }
  }
}

/** The page may only load what this server sends. Unlike the UI's own policy, it works without HTTPS on any host. */
const CONTENT_SECURITY_POLICY = "default-src 'self'; base-uri 'self'; frame-ancestors 'self'; img-src 'self' data:; object-src 'none'; style-src 'self' 'unsafe-inline'"

const ERROR_BODY = {
  type: 'object',
  properties: {
    statusCode: { type: 'integer' },
    code: { type: 'string', description: 'A stable name of the error.' },
    error: { type: 'string' },
    message: { type: 'string' }
  }
}

function requirePeer (name) {
  try {
    return require(name)
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error
    throw codedError('NOT_INSTALLED', `docs need the package ${name}: npm install @fastify/swagger @fastify/swagger-ui`)
  }
}

/** Registers the description and its page, or joins those that the app has registered. Must run before the routes are added. */
async function addDocs (fastify, { prefix, info }) {
  if (!fastify.hasDecorator('swagger')) {
    await fastify.register(requirePeer('@fastify/swagger'), { openapi: { openapi: '3.1.0', info } })
  }
  if (!fastify.hasDecorator('swaggerCSP')) {
    await fastify.register(requirePeer('@fastify/swagger-ui'), { routePrefix: prefix, staticCSP: CONTENT_SECURITY_POLICY })
  }
}

const errorResponse = (description) => ({ description, content: { 'application/json': { schema: ERROR_BODY } } })

function errorResponses (route) {
  const descriptions = { ...codesByStatus(), 413: 'FST_ERR_CTP_BODY_TOO_LARGE', 500: 'Any other error of the plugin' }
  if (route.mode === 'http') descriptions[502] = 'BAD_PLUGIN_RESPONSE'
  if (route.fastify.schema !== undefined) descriptions[400] = 'FST_ERR_VALIDATION'
  if (isValidated(route)) descriptions[415] = 'FST_ERR_CTP_INVALID_MEDIA_TYPE'
  const { PLUGIN_ERROR: status } = route.errors
  if (status !== undefined) descriptions[status] = ['PLUGIN_ERROR, with the message of the plugin', descriptions[status]].filter(Boolean).join('; ')
  return Object.fromEntries(Object.entries(descriptions).map(([status, text]) => [status, errorResponse(text)]))
}

function successResponse (route) {
  if (route.mode === 'raw') return outputResponse(route, withoutRecursion(route.outputSchema))
  return { description: `The status, headers and body that ${route.functionName} returns`, type: 'null' }
}

/** A schema of a plugin without `definitions`, which @fastify/swagger does not follow: what contains itself may be anything. */
function withoutRecursion (schema) {
  if (schema?.definitions === undefined) return schema
  const { definitions, ...rest } = schema
  return JSON.parse(JSON.stringify(rest, (key, value) => value?.$ref === undefined ? value : {}))
}

/** The schema of a route for readers. Fastify itself neither validates nor serializes by it. */
function describedSchema (route, schema) {
  const { plugin, functionName, mode } = route
  const own = route.fastify.schema?.response
  const input = mode === 'http' ? 'The input is the request, as JSON.' : 'The input is the body.'
  return {
    tags: [plugin],
    summary: `Run ${functionName} of ${plugin}`,
    description: `Runs the function \`${functionName}\` of the plugin \`${plugin}\`. ${input}`,
    ...(canHaveBody(route.method) ? { body: ANY_BODY } : {}),
    ...schema,
    ...(route.inputSchema === undefined ? {} : { body: withoutRecursion(route.inputSchema) }),
    response: { ...(own === undefined ? { 200: successResponse(route) } : {}), ...errorResponses(route), ...own }
  }
}

/** A route that the description shows with its plugin, function, input and errors. */
function withDocs (route) {
  const swaggerTransform = ({ schema, url }) => ({ schema: describedSchema(route, schema), url })
  return { ...route, fastify: { ...route.fastify, config: { swaggerTransform, ...route.fastify.config } } }
}

module.exports = { addDocs, withDocs }
