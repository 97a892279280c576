'use strict'

// Gives guests brokers and databases: the functions that they import, and which connection a request names.

const { USER_NAMESPACE, asInteger, countConnectorCall, describe, invalidArgument, isObject, pick } = require('extism-host/internal')
const { Connection } = require('./connection.js')
const { jetStreamTrigger } = require('./jetstream-trigger.js')
const { mqtt } = require('./mqtt.js')
const { mqttTrigger } = require('./mqtt-trigger.js')
const { nats } = require('./nats.js')
const { natsTrigger } = require('./nats-trigger.js')
const { postgres } = require('./postgres.js')
const { GuestError, errorReply, readRequest } = require('./protocol.js')
const { redis } = require('./redis.js')
const { slingshotFunctions } = require('./slingshot.js')

const ownFunction = (operation) => ({
  operation,
  read: (block, most) => readRequest(block, most, operation),
  succeed: (reply) => reply,
  fail: errorReply
})

/** The functions that guests import: the operation of a connection that each runs, and how it reads and replies. */
const FUNCTIONS = {
  hostPublish: ownFunction('publish'),
  hostRequest: ownFunction('request'),
  hostQuery: ownFunction('query'),
  hostExecute: ownFunction('execute')
}

const OPTIONS = { maxRequestBytes: 'maxRequestBytes', onError: 'onError', slingshot: 'slingshot' }

function connect (connections, options = {}) {
  if (!isObject(connections)) throw invalidArgument(`connect takes an object {name: connection}, not ${describe(connections)}`)
  const byName = new Map(Object.entries(connections))
  for (const [name, connection] of byName) {
    if (!(connection instanceof Connection)) {
      throw invalidArgument(`the connection "${name}" must be made by mqtt(), nats(), postgres() or redis(), and is ${describe(connection)}`)
    }
  }
  const { maxRequestBytes, onError = () => {}, slingshot = false } = pick(options, OPTIONS, 'the options of connect')
  if (typeof onError !== 'function') throw invalidArgument(`onError must be a function, not ${describe(onError)}`)
  if (typeof slingshot !== 'boolean') throw invalidArgument(`slingshot must be a boolean, not ${describe(slingshot)}`)
  const most = asInteger(maxRequestBytes, 'maxRequestBytes', 2 ** 20, 2 ** 31 - 1)

  const hostFunction = ({ operation, read, succeed, fail }) => (context, offset) => {
    let request
    let connection
    const end = (outcome) => {
      connection?.end(operation, outcome)
      // Guests can pass any name, and metrics keep each one.
      countConnectorCall(context, connection === undefined ? '' : request.connection, operation, outcome)
    }
    const succeeded = (reply) => {
      end('OK')
      return succeed(reply, request)
    }
    const failed = (error) => {
      const isForGuest = error instanceof GuestError
      end(isForGuest ? error.code : 'INTERNAL')
      const cause = isForGuest ? error.cause : error
      if (cause !== undefined) onError(cause, { connection: request?.connection, operation })
      return fail(error)
    }
    try {
      const block = context.read(offset)
      if (block === null) throw new GuestError('INVALID_REQUEST', 'no block starts at this offset')
      const given = read(block, most)
      request = given.request
      connection = byName.get(request.connection)
      if (connection === undefined) throw new GuestError('UNKNOWN_CONNECTION', 'the host has no connection of this name')
      connection.begin()
      const reply = connection.perform(operation, request, given.payload, context)
      return reply instanceof Promise ? reply.then(succeeded, failed) : succeeded(reply)
    } catch (error) {
      return failed(error)
    }
  }
  return {
    [USER_NAMESPACE]: Object.fromEntries(Object.entries({ ...FUNCTIONS, ...(slingshot ? slingshotFunctions : undefined) })
      .map(([name, definition]) => [name, hostFunction(definition)]))
  }
}

module.exports = { connect, jetStreamTrigger, mqtt, mqttTrigger, nats, natsTrigger, postgres, redis }
