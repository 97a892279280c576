'use strict'

// Requests and responses as JSON, for plugin functions of the mode 'http'.

const { isUtf8 } = require('node:buffer')
const { validateHeaderName, validateHeaderValue } = require('node:http')
const { invalidArgument, isObject, pick } = require('extism-host/internal')

const RESPONSE_KEYS = { status: 'status', headers: 'headers', body: 'body', isBase64: 'isBase64' }
// Headers about the connection are Fastify's responsibility. The last name would set the prototype of the headers
// object.
const REFUSED_HEADERS = new Set([
  'connection', 'content-length', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'proxy-connection', 'te',
  'trailer', 'transfer-encoding', 'upgrade', '__proto__'
])
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/

/** Serializes a request for a function: the body as text if it is UTF-8, else as base64. */
function requestAsJson ({ method, url, query, params, headers }, body = Buffer.alloc(0)) {
  const isBase64 = !isUtf8(body)
  const end = url.indexOf('?')
  return JSON.stringify({
    method,
    url,
    path: end === -1 ? url : url.slice(0, end),
    query,
    params,
    headers,
    body: body.toString(isBase64 ? 'base64' : 'utf8'),
    isBase64
  })
}

function checkHeader (name, value) {
  if (REFUSED_HEADERS.has(name.toLowerCase())) throw invalidArgument(`the plugin must not set the header ${name}`)
  validateHeaderName(name)
  const values = Array.isArray(value) && name.toLowerCase() !== 'content-type' ? value : [value]
  for (const one of values) {
    if (typeof one !== 'string') throw invalidArgument(`the header ${name} must be a string, or an array of strings if it may be repeated`)
    validateHeaderValue(name, one)
  }
}

function asBody (body, isBase64) {
  if (typeof body !== 'string') throw invalidArgument('the body must be a string')
  if (typeof isBase64 !== 'boolean') throw invalidArgument('isBase64 must be a boolean')
  if (isBase64 && !BASE64.test(body)) throw invalidArgument('the body is not valid base64')
  return Buffer.from(body, isBase64 ? 'base64' : 'utf8')
}

/** Parses the output of a function as a response; throws if it is not valid. */
function parseAnswer (output) {
  if (output === null) throw invalidArgument('the output is empty')
  const { status = 200, headers = {}, body = '', isBase64 = false } = pick(output.json(), RESPONSE_KEYS, 'the response')
  if (!Number.isInteger(status) || status < 200 || status > 599) throw invalidArgument('the status must be a whole number from 200 to 599')
  if (!isObject(headers)) throw invalidArgument('the headers must be an object')
  for (const [name, value] of Object.entries(headers)) checkHeader(name, value)
  return { status, headers, body: asBody(body, isBase64), defaultType: isBase64 ? 'application/octet-stream' : 'text/plain; charset=utf-8' }
}

module.exports = { parseAnswer, requestAsJson }
