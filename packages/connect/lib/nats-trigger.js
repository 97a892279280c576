'use strict'

// Calls a plugin for each message of a subject of NATS.

const { MAX_TIMER_MS, MAX_U32, asInteger, describe, invalidArgument, pick } = require('extism-host/internal')
const { asRecord, newHeaders } = require('./nats-headers.js')
const { withPayload } = require('./protocol.js')
const { isPattern } = require('./subjects.js')

const OPTIONS = {
  subject: 'subject',
  queue: 'queue',
  plugin: 'plugin',
  function: 'function',
  concurrency: 'concurrency',
  maxPending: 'maxPending',
  timeoutMs: 'timeoutMs',
  onError: 'onError'
}

/** The headers by which services on NATS report errors. */
const ERROR = 'Nats-Service-Error'
const ERROR_CODE = 'Nats-Service-Error-Code'

/** A subscription whose messages a plugin processes. */
class NatsTrigger {
  #options
  #subscription
  #pending = []
  #running = 0
  #counts = { received: 0, succeeded: 0, failed: 0, dropped: 0 }
  #idle = []
  #makeHeaders

  constructor (connection, options) {
    this.#options = options
    this.#makeHeaders = newHeaders()
    this.#subscription = connection.subscribe(options.subject, {
      queue: options.queue,
      callback: (error, message) => {
        if (error) options.onError(error, { subject: options.subject })
        else this.#receive(message)
      }
    })
  }

  #receive (message) {
    this.#counts.received++
    if (this.#running < this.#options.concurrency) this.#run(message)
    else if (this.#pending.length < this.#options.maxPending) this.#pending.push(message)
    else {
      this.#counts.dropped++
      this.#respond(message, undefined, { code: 503, text: 'BUSY' })
    }
  }

  async #run (message) {
    this.#running++
    const { plugin, function: name, timeoutMs } = this.#options
    try {
      const input = withPayload({ subject: message.subject, headers: asRecord(message.headers) }, message.data)
      const output = await plugin.call(name, input, undefined, timeoutMs === undefined ? undefined : { timeoutMs })
      this.#counts.succeeded++
      this.#respond(message, output?.bytes())
    } catch (error) {
      this.#counts.failed++
      this.#options.onError(error, { subject: message.subject })
      this.#respond(message, undefined, { code: 500, text: typeof error?.code === 'string' ? error.code : 'FAILED' })
    } finally {
      this.#running--
      const next = this.#pending.shift()
      if (next !== undefined) this.#run(next)
      else if (this.#running === 0) for (const resolve of this.#idle.splice(0)) resolve()
    }
  }

  #respond (message, payload, error) {
    if (!message.reply) return
    let headers
    if (error !== undefined) {
      headers = this.#makeHeaders()
      headers.set(ERROR, error.text)
      headers.set(ERROR_CODE, String(error.code))
    }
    try {
      message.respond(payload, { headers })
    } catch (error) {
      this.#options.onError(error, { subject: message.subject })
    }
  }

  stats () {
    return { ...this.#counts, running: this.#running, pending: this.#pending.length }
  }

  /** Takes no further messages, and resolves once those that have come are processed. */
  async close () {
    // Draining fails only if the connection is closed or lost; nothing comes then either.
    if (!this.#subscription.isClosed()) await this.#subscription.drain().catch(() => this.#subscription.unsubscribe())
    if (this.#running > 0) await new Promise((resolve) => this.#idle.push(resolve))
  }
}

function natsTrigger (connection, options) {
  if (typeof connection?.subscribe !== 'function') {
    throw invalidArgument(`natsTrigger takes a connection of @nats-io/transport-node, not ${describe(connection)}`)
  }
  const { subject, queue, plugin, function: name, onError, ...given } = pick(options, OPTIONS, 'the options of natsTrigger')
  if (!isPattern(subject)) throw invalidArgument(`subject must be a subject such as 'orders.*', not ${describe(subject)}`)
  if (queue !== undefined && typeof queue !== 'string') throw invalidArgument(`queue must be a string, not ${describe(queue)}`)
  if (typeof plugin?.call !== 'function') throw invalidArgument(`plugin must be a plugin, not ${describe(plugin)}`)
  if (typeof name !== 'string') throw invalidArgument(`function must be the name of a function, not ${describe(name)}`)
  if (typeof onError !== 'function') throw invalidArgument(`onError must be a function, not ${describe(onError)}`)
  return new NatsTrigger(connection, {
    subject,
    queue,
    plugin,
    function: name,
    onError,
    concurrency: asInteger(given.concurrency, 'concurrency', 16, MAX_U32),
    maxPending: asInteger(given.maxPending, 'maxPending', 1_000, MAX_U32, 0),
    timeoutMs: asInteger(given.timeoutMs, 'timeoutMs', undefined, MAX_TIMER_MS)
  })
}

module.exports = { natsTrigger }
