'use strict'

// The app's connections to brokers and databases: for its triggers, and for its plugins by the host functions of `connect`.

const { USER_NAMESPACE, describe, invalidArgument, isObject } = require('extism-host/internal')
const { CLIENTS, load, mqttOptions, unavailable } = require('./clients.js')
const { inTime } = require('./in-time.js')

const KINDS = Object.keys(CLIENTS)

const CHECK_MS = 1_000

/** The time to close a connection. A statement that goes on is canceled, and its connection terminated, before that. */
const CLOSE_MS = 5_000

/** Checks the option `connections`: open clients (`external`), or the addresses of brokers and databases. */
function asConnections (connections) {
  if (!isObject(connections)) throw invalidArgument(`connections must be an object of connections by name, not ${describe(connections)}`)
  return new Map(Object.entries(connections).map(([name, value]) => [name, asConnection(value, `the connection "${name}"`)]))
}

function asConnection (value, what) {
  const open = KINDS.find((kind) => CLIENTS[kind].isClient(value))
  if (open !== undefined) return { what, kind: open, external: value }
  const kinds = KINDS.filter((kind) => isObject(value) && typeof value[kind] === 'string')
  if (kinds.length !== 1) {
    throw invalidArgument(`${what} must be a connection to NATS, a Pool of pg, a client of redis, or an object with a URL as one of ${KINDS.join(', ')}`)
  }
  const [kind] = kinds
  const { [kind]: url, ...options } = value
  return { what, kind, url, options }
}

/** Checks the option `connect` of a plugin: by the guest's name of a connection, that connection, and permissions on it. */
function asConnect (connect, what, connections) {
  if (!isObject(connect)) throw invalidArgument(`${what} must be an object of permissions by connection, not ${describe(connect)}`)
  return Object.entries(connect).map(([name, value]) => {
    if (!isObject(value)) throw invalidArgument(`${what}.${name} must be an object of permissions, not ${describe(value)}`)
    const { connection = name, ...permissions } = value
    if (!connections.has(connection)) {
      const known = connections.size === 0 ? 'there is none' : `there are ${[...connections.keys()].map((one) => `"${one}"`).join(', ')}`
      throw invalidArgument(`${what}.${name} needs "${connection}" in the option "connections"; ${known}`)
    }
    return { name, connection, permissions }
  })
}

/** Opens each connection when it is first needed, and closes all that it has opened. */
class Connections {
  #definitions
  #log
  /** Promises of clients, by name. */
  #opened = new Map()
  /** The connections of plugins, by name, with the check that is running. */
  #checks = new Map()
  #closed

  constructor (definitions, log) {
    this.#definitions = definitions
    this.#log = log
  }

  /** The address of an MQTT broker, for triggers: each has a connection and a session of its own. */
  mqttBroker (name) {
    const { url, options } = this.#definitions.get(name)
    return { url, ...mqttOptions(options) }
  }

  open (name) {
    let opening = this.#opened.get(name)
    if (opening === undefined) {
      opening = this.#open(name)
      this.#opened.set(name, opening)
      // The next reload may try again.
      opening.catch(() => this.#opened.delete(name))
    }
    return opening
  }

  async #open (name) {
    const { what, kind, external, url, options } = this.#definitions.get(name)
    if (external !== undefined) return external
    const onError = (err) => this.#log.warn({ err, connection: name }, `${what} has failed`)
    try {
      return await CLIENTS[kind].open(load(kind, what), url, options, onError)
    } catch (error) {
      throw renamed(error, what)
    }
  }

  /** The option `functions` of a plugin: its own functions, and those of its connections. */
  async functionsOf ({ name: plugin, connect: allowed, options: { functions } }) {
    if (allowed === undefined) return functions
    const { connect, ...make } = require('extism-host/connect')
    const made = await Promise.all(allowed.map(async ({ name, connection, permissions }) => {
      const client = await this.open(connection)
      try {
        const guestConnection = make[this.#definitions.get(connection).kind](client, permissions)
        this.#checks.set(connection, this.#checks.get(connection))
        return [name, guestConnection]
      } catch (error) {
        throw renamed(error, `connect.${name}`)
      }
    }))
    const onError = (err, origin) => this.#log.warn({ err, plugin, ...origin }, 'an operation of a plugin on a connection has failed')
    const { [USER_NAMESPACE]: ofConnections } = connect(Object.fromEntries(made), { onError, slingshot: true })
    return { ...functions, [USER_NAMESPACE]: { ...ofConnections, ...functions?.[USER_NAMESPACE] } }
  }

  /** Whether plugins use connections. */
  get hasGuests () {
    return this.#checks.size > 0
  }

  /** A promise for each connection that plugins use, which rejects if it does not respond. */
  checkReady () {
    return [...this.#checks.keys()].map((name) => inTime(this.#check(name), CHECK_MS, unavailable)
      .catch((error) => { throw renamed(error, this.#definitions.get(name).what) }))
  }

  /** A check that still waits is not repeated. */
  #check (name) {
    let check = this.#checks.get(name)
    if (check === undefined) {
      const end = () => this.#checks.set(name, undefined)
      check = this.open(name).then((client) => CLIENTS[this.#definitions.get(name).kind].check(client))
      this.#checks.set(name, check)
      check.then(end, end)
    }
    return check
  }

  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    await Promise.all([...this.#opened].map(async ([name, opening]) => {
      const { what, kind, external } = this.#definitions.get(name)
      if (external !== undefined) return
      try {
        await inTime(opening.then((client) => CLIENTS[kind].close(client)), CLOSE_MS, unavailable)
      } catch (err) {
        this.#log.warn({ err }, `${what} could not be closed`)
      }
    }))
  }
}

/** The error with what it is about in its message. */
function renamed (cause, what) {
  // An error of several addresses of a host has no message.
  const message = cause.message || cause.code
  return Object.assign(new Error(`${what}: ${message}`, { cause }), { code: typeof cause.code === 'string' ? cause.code : 'UNAVAILABLE' })
}

module.exports = { Connections, asConnect, asConnections, renamed }
