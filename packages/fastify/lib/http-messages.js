'use strict'

// Requests and answers as JSON, for functions that handle HTTP themselves.

const { isUtf8 } = require('node:buffer')
const { validateHeaderName, validateHeaderValue } = require('node:http')
const { invalidArgument, isObject, pick } = require('extism-host/internal')

const ANSWER_KEYS = { status: 'status', headers: 'headers', body: 'body', isBase64: 'isBase64' }
// How an answer is brought to the client is not the guest's business. The last is no header: it would
// change the object that the others are in.
const REFUSED_HEADERS = new Set([
  'connection', 'content-length', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'proxy-connection', 'te',
  'trailer', 'transfer-encoding', 'upgrade', '__proto__'
])
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/

/** A request as its function gets it. What the body has as text is JSON's text, other bytes are base64. */
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
  if (REFUSED_HEADERS.has(name.toLowerCase())) throw invalidArgument(`the header ${name} is not for the plugin to set`)
  validateHeaderName(name)
  const values = Array.isArray(value) && name.toLowerCase() !== 'content-type' ? value : [value]
  for (const one of values) {
    if (typeof one !== 'string') throw invalidArgument(`the header ${name} must be a string, or an array of strings where there can be several`)
    validateHeaderValue(name, one)
  }
}

function asBody (body, isBase64) {
  if (typeof body !== 'string') throw invalidArgument('the body must be a string')
  if (typeof isBase64 !== 'boolean') throw invalidArgument('isBase64 must be a boolean')
  if (isBase64 && !BASE64.test(body)) throw invalidArgument('the body is no base64')
  return Buffer.from(body, isBase64 ? 'base64' : 'utf8')
}

/** What a function's output says that the answer is; throws where it says that of none. */
function answerOf (output) {
  if (output === null) throw invalidArgument('the output is empty')
  const { status = 200, headers = {}, body = '', isBase64 = false } = pick(output.json(), ANSWER_KEYS, 'an answer')
  if (!Number.isInteger(status) || status < 200 || status > 599) throw invalidArgument('the status must be a whole number from 200 to 599')
  if (!isObject(headers)) throw invalidArgument('the headers must be an object')
  for (const [name, value] of Object.entries(headers)) checkHeader(name, value)
  return { status, headers, body: asBody(body, isBase64), defaultType: isBase64 ? 'application/octet-stream' : 'text/plain; charset=utf-8' }
}

module.exports = { answerOf, requestAsJson }
