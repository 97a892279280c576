'use strict'

// The HTTP errors of failed calls. Clients get no details; those are in the error's `cause`, for the log.

const createError = require('@fastify/error')
const { PluginError } = require('extism-host')
const { errorCodes } = require('extism-host/internal')
const { traceIds } = require('./trace-ids.js')

const MESSAGE = 'the plugin gave no answer'
const STATUS = { TIMEOUT: 504, QUEUE_FULL: 503, UNAVAILABLE: 503, CLOSED: 503, STORE_UNAVAILABLE: 503, OUT_OF_RESOURCES: 503, CANCELED: 499 }
const RETRY_AFTER_SECONDS = '1'

const CODES = new Set([...errorCodes(), 'CANCELED'])
const errors = new Map([...CODES].map((code) => [code, createError(code, MESSAGE, STATUS[code] ?? 500)]))

const BadPluginResponse = createError('BAD_PLUGIN_RESPONSE', 'the plugin gave no valid response', 502)

/** The codes by the HTTP status that a client gets for them, as text. */
function codesByStatus () {
  const byStatus = {}
  for (const [code, status] of Object.entries(STATUS)) {
    // A client that has disconnected gets no response.
    if (code !== 'CANCELED') byStatus[status] = byStatus[status] === undefined ? code : `${byStatus[status]}, ${code}`
  }
  return byStatus
}

/** The code of a call's error. Errors thrown by host functions in JavaScript may have an unknown code, or none. */
function codeOf (error) {
  return CODES.has(error?.code) ? error.code : 'HOST_FUNCTION_ERROR'
}

/**
 * Converts the error of a call to the error that Fastify responds with. `exposed` maps codes whose message clients may
 * see to a status.
 */
function asHttpError (cause, exposed) {
  const code = codeOf(cause)
  const HttpError = errors.get(code)
  const error = new HttpError({ cause })
  // A host function may throw anything with that code.
  const statusCode = cause instanceof PluginError ? exposed[code] : undefined
  if (statusCode !== undefined) Object.assign(error, { statusCode, message: cause.message })
  if (error.statusCode === 503) error.headers = { 'retry-after': RETRY_AFTER_SECONDS }
  return error
}

/**
 * Makes the log lines of a request whose call failed name the call. Fastify, or the app's error handler, logs the error
 * later.
 */
function nameCallInLog (request, reply, plugin, functionName, cause) {
  request.log = reply.log = request.log.child({ plugin, function: functionName, code: codeOf(cause), ...traceIds() })
}

module.exports = { BadPluginResponse, asHttpError, codeOf, codesByStatus, nameCallInLog }
