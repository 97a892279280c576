'use strict'

// The host functions of slingshot (https://github.com/bots-garden/slingshot), as its guests call them: JSON in, and a
// JSON object with the strings `success` and `failure` out. Unless `failure` is empty, the function has failed.

const { GuestError, forGuest, parseJson } = require('./protocol.js')

const name = (reply, { connection }) => connection
const text = (reply) => reply

/**
 * The operation of each function, its request and payload from slingshot's arguments, and the text for `success`. The guest's
 * `id` names a connection. Its address is the host's affair, so the functions that connect only look for the name.
 */
const FUNCTIONS = {
  hostInitNatsConnection: { operation: 'connect', success: name },
  hostInitRedisClient: { operation: 'connect', success: name },
  hostNatsPublish: { operation: 'publish', request: ({ subject }) => ({ subject }), payload: ({ data }) => data, success: () => 'ok' },
  hostRedisPublish: { operation: 'publish', request: ({ channel }) => ({ subject: channel }), payload: ({ payload }) => payload, success: () => 'ok' },
  hostRedisGet: { operation: 'get', request: ({ key }) => ({ key }), success: text },
  hostRedisSet: { operation: 'set', request: ({ key, value }) => ({ key, value }), success: text },
  hostRedisDel: { operation: 'delete', request: ({ key }) => ({ key }), success: text },
  hostRedisFilter: { operation: 'keys', request: ({ key }) => ({ pattern: key }), success: (keys) => JSON.stringify(keys) }
}

function read (block, most, { request, payload }) {
  const args = parseJson(block.bytes(), most)
  const content = payload?.(args) ?? ''
  if (typeof content !== 'string') throw new GuestError('INVALID_REQUEST', 'the message must be a string')
  return { request: { connection: args.id, ...request?.(args) }, payload: Buffer.from(content) }
}

function fail (error) {
  const { code, message } = forGuest(error)
  // In the words of slingshot's own client.
  return JSON.stringify({ success: '', failure: code === 'NOT_FOUND' ? 'redis: nil' : `${code}: ${message}` })
}

/** How the functions of slingshot read and reply, by name. */
const slingshotFunctions = Object.fromEntries(Object.entries(FUNCTIONS).map(([name, definition]) => [name, {
  operation: definition.operation,
  read: (block, most) => read(block, most, definition),
  succeed: (reply, request) => JSON.stringify({ success: definition.success(reply, request), failure: '' }),
  fail
}]))

module.exports = { slingshotFunctions }
