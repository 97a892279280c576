'use strict'

// Gives guests brokers and databases: the functions that they import, and which connection a request names.

const { USER_NAMESPACE, asInteger, describe, invalidArgument, isObject, pick } = require('extism-host/internal')
const { Connection } = require('./connection.js')
const { jetStreamTrigger } = require('./jetstream-trigger.js')
const { mqtt } = require('./mqtt.js')
const { mqttTrigger } = require('./mqtt-trigger.js')
const { nats } = require('./nats.js')
const { natsTrigger } = require('./nats-trigger.js')
const { postgres } = require('./postgres.js')
const { GuestError, errorReply, readRequest } = require('./protocol.js')

/** The functions that guests import, with the operation of a connection that each runs. */
const FUNCTIONS = { hostPublish: 'publish', hostRequest: 'request', hostQuery: 'query', hostExecute: 'execute' }

const OPTIONS = { maxRequestBytes: 'maxRequestBytes', onError: 'onError' }

function connect (connections, options = {}) {
  if (!isObject(connections)) throw invalidArgument(`connect takes an object {name: connection}, not ${describe(connections)}`)
  const byName = new Map(Object.entries(connections))
  for (const [name, connection] of byName) {
    if (!(connection instanceof Connection)) {
      throw invalidArgument(`the connection "${name}" must be made by mqtt(), nats() or postgres(), and is ${describe(connection)}`)
    }
  }
  const { maxRequestBytes, onError = () => {} } = pick(options, OPTIONS, 'the options of connect')
  if (typeof onError !== 'function') throw invalidArgument(`onError must be a function, not ${describe(onError)}`)
  const most = asInteger(maxRequestBytes, 'maxRequestBytes', 2 ** 20, 2 ** 31 - 1)

  const hostFunction = (operation) => (context, offset) => {
    let name
    const failed = (error) => {
      if (!(error instanceof GuestError)) onError(error, { connection: name, operation })
      else if (error.cause !== undefined) onError(error.cause, { connection: name, operation })
      return errorReply(error)
    }
    try {
      const { request, payload } = readRequest(context.read(offset), operation, most)
      name = request.connection
      const connection = byName.get(name)
      if (connection === undefined) throw new GuestError('UNKNOWN_CONNECTION', 'the host has no connection of this name')
      const reply = connection.perform(operation, request, payload, context)
      return reply instanceof Promise ? reply.catch(failed) : reply
    } catch (error) {
      return failed(error)
    }
  }
  return {
    [USER_NAMESPACE]: Object.fromEntries(Object.entries(FUNCTIONS).map(([name, operation]) => [name, hostFunction(operation)]))
  }
}

module.exports = { connect, jetStreamTrigger, mqtt, mqttTrigger, nats, natsTrigger, postgres }
