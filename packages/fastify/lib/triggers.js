'use strict'

// The app's triggers: they call plugins for messages of brokers, from the app's start until its end.

const { describe, invalidArgument, isObject } = require('extism-host/internal')
const { renamed } = require('./connections.js')

/** How to open a trigger on a connection, and what the name of its source is. */
const KINDS = {
  nats: { connection: 'nats', source: 'subject', open: (connection, options, connect) => connect.natsTrigger(connection, options) },
  jetStream: { connection: 'nats', source: 'subject', open: (connection, options, connect) => connect.jetStreamTrigger(connection, options) },
  mqtt: { connection: 'mqtt', source: 'topic', open: (connection, options, connect) => connect.mqttTrigger(connection, options) }
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
  #definitions
  #connections
  #plugins
  #log
  #list = []
  #closed

  constructor (definitions, connections, plugins, log) {
    this.#definitions = definitions
    this.#connections = connections
    this.#plugins = plugins
    this.#log = log
  }

  /** The open triggers: the labels of their metrics, and the trigger. */
  get list () {
    return this.#list
  }

  async open () {
    for (const definition of this.#definitions) await this.#open(definition)
  }

  async #open ({ what, kind, source, plugin, functionName, options, connection }) {
    const onError = (error, origin) => this.#log.error({ err: error, trigger: source, plugin, ...origin }, 'a message was not handled')
    // Reloads replace the plugin's version, not this object.
    const all = { ...options, [KINDS[kind].source]: source, plugin: this.#plugins.plugin(plugin), function: functionName, onError }
    const broker = kind === 'mqtt' ? this.#connections.mqttBroker(connection) : await this.#connections.open(connection)
    try {
      const trigger = await KINDS[kind].open(broker, all, require('extism-host/connect'))
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
  }
}

module.exports = { Triggers, asTriggers }
