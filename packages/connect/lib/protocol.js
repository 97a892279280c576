'use strict'

// The format of blocks between guests and the host. A request is JSON. With `publish` and `request` its first line is JSON, and
// the bytes after that line are the message's. A reply is built in the same way.

const NEWLINE = 10

/** The operations whose requests and replies have a payload. */
const WITH_PAYLOAD = new Set(['publish', 'request'])

const decoder = new TextDecoder('utf-8', { fatal: true })
const EMPTY = new Uint8Array(0)

/** An error that the guest is told. Its `cause` is for the host only: it may have hosts, users and values in it. */
class GuestError extends Error {
  constructor (code, message, { cause, ...details } = {}) {
    super(message, { cause })
    this.code = code
    this.details = details
  }
}

/** The error that a guest is told: defects stay with the host. */
function forGuest (error) {
  return error instanceof GuestError ? error : new GuestError('INTERNAL', 'the host has failed')
}

function errorReply (error) {
  const { code, message, details } = forGuest(error)
  return JSON.stringify({ error: { code, message, ...details } })
}

/** The JSON object of a request. */
function parseJson (json, maxBytes) {
  if (json.length > maxBytes) throw new GuestError('TOO_LARGE', `a request has up to ${maxBytes} bytes`)
  let request
  try {
    request = JSON.parse(decoder.decode(json))
  } catch {
    throw new GuestError('INVALID_REQUEST', 'the request is not valid JSON')
  }
  if (typeof request !== 'object' || request === null || Array.isArray(request)) {
    throw new GuestError('INVALID_REQUEST', 'the request is not a JSON object')
  }
  return request
}

/** The request in a block, and its payload. */
function readRequest (block, maxBytes, operation) {
  const bytes = block.bytes()
  const newline = WITH_PAYLOAD.has(operation) ? bytes.indexOf(NEWLINE) : -1
  return newline === -1
    ? { request: parseJson(bytes, maxBytes), payload: EMPTY }
    : { request: parseJson(bytes.subarray(0, newline), maxBytes), payload: bytes.subarray(newline + 1) }
}

/** Bytes whose first line is the JSON `head`, and which the payload follows. */
function withPayload (head, payload) {
  const length = Buffer.byteLength(head)
  const bytes = Buffer.allocUnsafe(length + 1 + payload.length)
  bytes.write(head)
  bytes[length] = NEWLINE
  bytes.set(payload, length + 1)
  return bytes
}

module.exports = { GuestError, errorReply, forGuest, parseJson, readRequest, withPayload }
