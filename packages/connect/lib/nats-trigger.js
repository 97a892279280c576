'use strict'

// Calls a plugin for each message of a subject of NATS, at most once.

const { MAX_U32, asInteger, describe, invalidArgument } = require('extism-host/internal')
const { headersJson, newHeaders } = require('./nats-headers.js')
const { withPayload } = require('./protocol.js')
const { isPattern } = require('./subjects.js')
const { Batch, MessageQueue, asTriggerOptions, callPlugin, codeOf, newCounts } = require('./trigger.js')

/** The headers by which services on NATS report errors. */
const ERROR = 'Nats-Service-Error'
const ERROR_CODE = 'Nats-Service-Error-Code'

/** A subscription whose messages a plugin handles. */
class NatsTrigger {
  #connection
  #options
  #subscription
  #queue
  #counts = newCounts()
  #answers = new Batch()
  #makeHeaders

  constructor (connection, options) {
    this.#connection = connection
    this.#options = options
    this.#makeHeaders = newHeaders()
    this.#queue = new MessageQueue(options.concurrency, (message) => this.#handle(message))
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
    if (!this.#queue.isBusy || this.#queue.pending < this.#options.maxPending) this.#queue.add(message)
    else {
      this.#counts.dropped++
      this.#respond(message, undefined, { code: 503, text: 'BUSY' })
    }
  }

  async #handle (message) {
    try {
      const head = `{"subject":${JSON.stringify(message.subject)},"headers":${headersJson(message)}}`
      const output = await callPlugin(this.#options, withPayload(head, message.data))
      this.#counts.handled++
      if (message.reply) this.#respond(message, output?.bytes())
    } catch (error) {
      this.#counts.failed++
      this.#options.onError(error, { subject: message.subject })
      this.#respond(message, undefined, { code: 500, text: codeOf(error) })
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
    this.#answers.add(() => {
      try {
        message.respond(payload, { headers })
      } catch (error) {
        this.#options.onError(error, { subject: message.subject })
      }
    })
  }

  stats () {
    return { ...this.#counts, inFlight: this.#queue.inFlight, pending: this.#queue.pending }
  }

  async checkReady () {
    await this.#connection.flush()
  }

  /** Takes no further messages, and resolves once those that have come are handled. */
  async close () {
    // Draining fails only if the connection is closed or lost; nothing comes then either.
    if (!this.#subscription.isClosed()) await this.#subscription.drain().catch(() => this.#subscription.unsubscribe())
    await this.#queue.idle()
    this.#answers.flush()
  }
}

function natsTrigger (connection, options) {
  if (typeof connection?.subscribe !== 'function') {
    throw invalidArgument(`natsTrigger takes a connection of @nats-io/transport-node, not ${describe(connection)}`)
  }
  const { subject, queue, maxPending, ...common } = asTriggerOptions(options, ['subject', 'queue', 'maxPending'], 'natsTrigger')
  if (!isPattern(subject)) throw invalidArgument(`subject must be a subject such as 'orders.*', not ${describe(subject)}`)
  if (queue !== undefined && typeof queue !== 'string') throw invalidArgument(`queue must be a string, not ${describe(queue)}`)
  return new NatsTrigger(connection, { ...common, subject, queue, maxPending: asInteger(maxPending, 'maxPending', 1_000, MAX_U32, 0) })
}

module.exports = { natsTrigger }
