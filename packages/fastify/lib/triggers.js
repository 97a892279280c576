'use strict'

// The app's triggers: they call plugins for messages of brokers, from the app's start until its end.

const { codedError, describe, invalidArgument, isObject } = require('extism-host/internal')

/** The time limit of a connection to a broker at the start. Fastify gives a plugin 10 s. */
const CONNECT_MS = 5_000

/** How to open a connection, or a trigger on it, and what the name of a trigger's source is. */
const KINDS = {
  nats: { connection: 'nats', source: 'subject', open: (connection, options, connect) => connect.natsTrigger(connection, options) },
  jetStream: { connection: 'nats', source: 'subject', open: (connection, options, connect) => connect.jetStreamTrigger(connection, options) },
  mqtt: { connection: 'mqtt', source: 'topic', open: (connection, options, connect) => connect.mqttTrigger(connection, options) }
}

/** Checks the option `connections`: an open connection to NATS (`external`), or the address of a broker. */
function asConnections (connections) {
  if (!isObject(connections)) throw invalidArgument(`connections must be an object of connections by name, not ${describe(connections)}`)
  return new Map(Object.entries(connections).map(([name, value]) => [name, asConnection(value, `the connection "${name}"`)]))
}

function asConnection (value, what) {
  if (typeof value?.subscribe === 'function') return { kind: 'nats', external: value }
  const kinds = ['nats', 'mqtt'].filter((kind) => isObject(value) && typeof value[kind] === 'string')
  if (kinds.length !== 1) throw invalidArgument(`${what} must be a connection to NATS, or an object with the URL of a broker as "nats" or "mqtt"`)
  const [kind] = kinds
  const { [kind]: url, ...options } = value
  return { kind, url, options }
}

/** Checks the options of the triggers that the app itself uses. */
function asTriggers (triggers, connections, plugins) {
  if (!Array.isArray(triggers)) throw invalidArgument(`triggers must be an array, not ${describe(triggers)}`)
  return triggers.map((trigger, index) => asTrigger(trigger, `triggers[${index}]`, connections, plugins))
}

function asTrigger (trigger, what, connections, plugins) {
  const kinds = Object.keys(KINDS).filter((kind) => isObject(trigger) && trigger[kind] !== undefined)
  if (kinds.length !== 1) throw invalidArgument(`${what} must have one of ${Object.keys(KINDS).join(', ')}`)
  const [kind] = kinds
  const { [kind]: source, connection, plugin, function: functionName, ...options } = trigger
  if (!plugins.some(({ name }) => name === plugin)) {
    throw invalidArgument(`${what} names plugin ${JSON.stringify(plugin)}, but there are only ${plugins.map(({ name }) => `"${name}"`).join(', ')}`)
  }
  if (typeof functionName !== 'string' || functionName === '') throw invalidArgument(`${what}.function must be a non-empty string`)
  return { what, kind, source, plugin, functionName, options, connection: connectionOf(connection, kind, what, connections) }
}

/** The name of a trigger's connection: by default, the only one to such a broker. */
function connectionOf (name, kind, what, connections) {
  const suitable = [...connections].filter(([, connection]) => connection.kind === KINDS[kind].connection).map(([name]) => name)
  if (name === undefined && suitable.length === 1) return suitable[0]
  if (suitable.includes(name)) return name
  const known = suitable.length === 0 ? 'there is none' : `there are ${suitable.map((one) => `"${one}"`).join(', ')}`
  throw invalidArgument(`${what}.connection must name a connection to ${KINDS[kind].connection} of the option "connections"; ${known}`)
}

class Triggers {
  #connections
  #definitions
  #plugins
  #log
  /** Open connections, by name, and those of them that the app closes. */
  #opened = new Map()
  #owned = []
  #list = []
  #closed

  constructor ({ connections, triggers }, plugins, log) {
    this.#connections = connections
    this.#definitions = triggers
    this.#plugins = plugins
    this.#log = log
  }

  /** The open triggers: the labels of their metrics, and the trigger. */
  get list () {
    return this.#list
  }

  async open () {
    for (const name of new Set(this.#definitions.map(({ connection }) => connection))) await this.#connect(name)
    for (const definition of this.#definitions) await this.#open(definition)
  }

  async #connect (name) {
    const { kind, external, url, options } = this.#connections.get(name)
    if (external !== undefined) this.#opened.set(name, external)
    // Each trigger has a connection to MQTT of its own, with a session of its own.
    else if (kind === 'mqtt') this.#opened.set(name, { url, connectTimeout: CONNECT_MS, ...options })
    else {
      const connection = await connectToNats({ servers: url.split(','), timeout: CONNECT_MS, maxReconnectAttempts: -1, ...options }, `the connection "${name}"`)
      this.#opened.set(name, connection)
      this.#owned.push(connection)
    }
  }

  async #open ({ what, kind, source, plugin, functionName, options, connection }) {
    const onError = (error, origin) => this.#log.error({ err: error, trigger: source, plugin, ...origin }, 'a message was not handled')
    // Reloads replace the plugin's version, not this object.
    const all = { ...options, [KINDS[kind].source]: source, plugin: this.#plugins.plugin(plugin), function: functionName, onError }
    try {
      const trigger = await KINDS[kind].open(this.#opened.get(connection), all, require('extism-host/connect'))
      this.#list.push({ labels: { trigger: source, plugin, function: functionName }, trigger })
      // An app that is ready gets messages: the server knows the subscription then.
      await trigger.checkReady()
    } catch (error) {
      throw renamed(error, `${what}, ${kind} "${source}"`)
    }
  }

  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    await Promise.all(this.#list.map(({ trigger }) => trigger.close()))
    await Promise.all(this.#owned.map((connection) => connection.close()))
  }
}

async function connectToNats (options, what) {
  // Fails with its own message if a package is missing.
  require('extism-host/connect')
  let connect
  try {
    ({ connect } = require('@nats-io/transport-node'))
  } catch {
    throw codedError('NOT_INSTALLED', `${what} needs the package @nats-io/transport-node: npm install @nats-io/transport-node`)
  }
  try {
    return await connect(options)
  } catch (error) {
    throw renamed(error, what)
  }
}

/** The error with what it is about in its message. */
function renamed (cause, what) {
  return Object.assign(new Error(`${what}: ${cause.message}`, { cause }), { code: typeof cause.code === 'string' ? cause.code : 'UNAVAILABLE' })
}

module.exports = { Triggers, asConnections, asTriggers }
