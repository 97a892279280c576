'use strict'

// Headers of messages, as objects {name: value}.

const { peer } = require('./peer.js')
const { GuestError } = require('./protocol.js')

/** The function of the client that makes headers. */
function newHeaders () {
  return peer('@nats-io/transport-node', () => require('@nats-io/transport-node')).headers
}

/** Adds a guest's headers. Those that begin with `Nats-` steer the server, except the one that detects duplicates. */
function headersOf (given, headers) {
  const isText = (value) => typeof value === 'string'
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw new GuestError('INVALID_REQUEST', 'headers must be an object {name: value}')
  }
  for (const [name, value] of Object.entries(given)) {
    const values = Array.isArray(value) ? value : [value]
    if (!values.every(isText)) throw new GuestError('INVALID_REQUEST', 'a header must be a string or an array of strings')
    if (/^nats-(?!msg-id$)/i.test(name)) throw new GuestError('NOT_ALLOWED', 'this plugin may not set headers that begin with "Nats-"')
    try {
      for (const value of values) headers.append(name, value)
    } catch {
      throw new GuestError('INVALID_REQUEST', 'a header has a character that headers cannot have')
    }
  }
  return headers
}

function asRecord (headers) {
  const record = Object.create(null)
  for (const name of headers?.keys() ?? []) record[name] = headers.values(name)
  return record
}

/** The headers of a message as JSON. Throws if the client cannot read them. */
function headersJson ({ headers }) {
  return headers === undefined ? '{}' : JSON.stringify(asRecord(headers))
}

module.exports = { asRecord, headersJson, headersOf, newHeaders }
