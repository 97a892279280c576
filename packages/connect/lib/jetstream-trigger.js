'use strict'

// Calls a plugin for each message of a JetStream consumer, at least once: a message is acknowledged only after its call has
// succeeded, or after it has been stored as a dead letter.

const { setTimeout: sleep } = require('node:timers/promises')
const { MAX_TIMER_MS, asInteger, describe, invalidArgument } = require('extism-host/internal')
const { asRecord, headersJson, newHeaders } = require('./nats-headers.js')
const { peer } = require('./peer.js')
const { withPayload } = require('./protocol.js')
const { EXPIRES_MS, NANOSECONDS_PER_MS, PullRequests } = require('./pull-requests.js')
const { isPattern, isSubject, subjectMatcher } = require('./subjects.js')
const { Batch, MessageQueue, REDELIVERY, asRedelivery, asTriggerOptions, callPlugin, codeOf, isTransient, newCounts, pauseAfter } = require('./trigger.js')

/** The pause after an error of the consumer. */
const RETRY_MS = 250

/** The time that closing waits for the server, which may be lost. */
const FLUSH_MS = 1_000

const CONSUMER_NOT_FOUND = 10014

/** Answers to the server: https://docs.nats.io/nats-concepts/jetstream/consumers#acknowledgement-models */
const ACK = Buffer.from('+ACK')
const TERM = Buffer.from('+TERM')
const WORKING = Buffer.from('+WPI')
const nak = (delayMs) => `-NAK ${JSON.stringify({ delay: delayMs * NANOSECONDS_PER_MS })}`

class JetStreamTrigger {
  #connection
  #client
  #ensureConsumer
  #options
  #makeHeaders
  #queue
  /** The messages that wait for a call or have one. The server hears of each that it is being worked on. */
  #held = new Set()
  #counts = newCounts()
  #answers = new Batch()
  #requests
  #isRecovering = false
  #timer
  #closing = new AbortController()
  #closed

  constructor (connection, { client, consumer, ensureConsumer, options }) {
    this.#connection = connection
    this.#client = client
    this.#ensureConsumer = ensureConsumer
    this.#options = options
    this.#makeHeaders = newHeaders()
    this.#queue = new MessageQueue(options.concurrency, (delivered) => this.#handle(delivered))
    this.#keepSignaling(consumer)
    this.#requests = new PullRequests(connection, `${client.apiPrefix}.CONSUMER.MSG.NEXT.${options.stream}.${options.consumer}`, {
      onMessage: (message) => this.#receive(message),
      onEnd: () => this.#request(),
      onFailure: (error) => this.#recover(error)
    })
    this.#request()
  }

  /** Tells the server again and again which messages are being worked on. */
  #keepSignaling ({ config }) {
    clearInterval(this.#timer)
    // A third of the time leaves two more chances, if a signal is late or lost.
    this.#timer = setInterval(() => this.#signalWork(), Math.min(config.ack_wait / NANOSECONDS_PER_MS / 3, MAX_TIMER_MS))
    this.#timer.unref()
  }

  /** Requests as many messages as are to be called for or to wait. One that waits here is not delivered elsewhere meanwhile. */
  #request () {
    if (this.#isRecovering || this.#closing.signal.aborted) return
    const { concurrency } = this.#options
    const room = 2 * concurrency - this.#held.size - this.#requests.pending
    if (room >= concurrency / 2) this.#requests.request(room)
  }

  /** Requests messages anew, once the consumer is there. Somebody may have deleted it, or it was in the memory of a server that was restarted. */
  async #recover (error) {
    if (this.#isRecovering) return
    this.#isRecovering = true
    for (;;) {
      if (error !== undefined) {
        if (this.#closing.signal.aborted) return
        this.#options.onError(error, { subject: this.#subject })
        await sleep(RETRY_MS, undefined, { signal: this.#closing.signal }).catch(() => {})
      }
      if (this.#closing.signal.aborted || this.#connection.isClosed()) return
      try {
        const held = [...this.#held]
        const consumer = await this.#ensureConsumer()
        for (const delivered of held) delivered.isOfFormer ||= delivered.number > consumer.delivered.consumer_seq
        if (this.#closing.signal.aborted) return
        this.#keepSignaling(consumer)
        await this.#requests.restart()
        break
      } catch (cause) {
        error = cause
      }
    }
    this.#isRecovering = false
    this.#request()
  }

  #receive (message) {
    this.#counts.received++
    const delivered = { message, isOfFormer: false, ...deliveryOf(message.reply) }
    if (delivered.delivery > 1) this.#counts.redelivered++
    this.#held.add(delivered)
    this.#queue.add(delivered)
  }

  async #handle (delivered) {
    const { message, sequence, delivery } = delivered
    const { stream, maxDeliver, backoffMs, onError } = this.#options
    try {
      const head = `{"subject":${JSON.stringify(message.subject)},"headers":${headersJson(message)},"stream":${JSON.stringify(stream)},"sequence":${sequence},"delivery":${delivery}}`
      await callPlugin(this.#options, withPayload(head, message.data))
      this.#counts.handled++
      this.#settle(delivered, ACK)
    } catch (error) {
      this.#counts.failed++
      onError(error, { subject: message.subject })
      if (delivery < maxDeliver || isTransient(error) || !await this.#storeDeadLetter(delivered, error)) {
        this.#settle(delivered, nak(pauseAfter(delivery, backoffMs)))
      } else {
        this.#counts.deadLettered++
        this.#settle(delivered, TERM)
      }
    }
  }

  /** Resolves to whether a stream has stored the dead letter. */
  async #storeDeadLetter ({ message, sequence, delivery, timestamp }, error) {
    const { deadLetterSubject, stream, consumer, onError } = this.#options
    try {
      const given = this.#makeHeaders()
      for (const [name, values] of Object.entries(readableHeaders(message))) {
        // Those would steer the server: with `Nats-Rollup`, one dead letter would delete the others.
        if (!/^nats-/i.test(name)) for (const value of values) given.append(name, value)
      }
      const headers = this.#makeHeaders()
      for (const name of given.keys()) for (const value of given.values(name)) headers.append(name, value)
      headers.set('Extism-Error', codeOf(error))
      headers.set('Extism-Subject', message.subject)
      headers.set('Extism-Stream', stream)
      headers.set('Extism-Sequence', String(sequence))
      headers.set('Extism-Deliveries', String(delivery))
      // If the connection is lost before the message is terminated, its next dead letter is a duplicate, which the stream drops.
      // The time tells apart the messages of streams that are made again, whose sequences begin anew.
      headers.set('Nats-Msg-Id', `${stream}:${consumer}:${sequence}:${timestamp}`)
      const isTooLarge = headers.encode().length + message.data.length > this.#connection.info?.max_payload
      await this.#client.publish(deadLetterSubject, message.data, { headers: isTooLarge ? given : headers })
      return true
    } catch (error) {
      onError(error, { subject: message.subject })
      return false
    }
  }

  #settle (delivered, answer) {
    this.#held.delete(delivered)
    this.#answers.add(() => this.#tell(delivered, answer))
    this.#request()
  }

  /**
   * Sends an answer. If this fails, the server delivers the message again. A consumer that was made again would take the answer
   * to a message of the former one for an answer to its own message with this sequence.
   */
  #tell ({ message, isOfFormer }, answer) {
    if (isOfFormer) return
    try {
      message.respond(answer)
    } catch (error) {
      this.#options.onError(error, { subject: message.subject })
    }
  }

  #signalWork () {
    for (const delivered of this.#held) this.#tell(delivered, WORKING)
  }

  get #subject () {
    return this.#options.subject ?? this.#options.stream
  }

  stats () {
    return { ...this.#counts, inFlight: this.#queue.inFlight, pending: this.#queue.pending }
  }

  async checkReady () {
    const { stream, consumer } = this.#options
    await this.#client.consumers.get(stream, consumer)
  }

  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    this.#closing.abort()
    // Messages that are on their way would otherwise come again only after `ack_wait`.
    await this.#inTime(this.#requests.close())
    await this.#queue.idle()
    clearInterval(this.#timer)
    this.#answers.flush()
    // The acknowledgements have arrived then. Without a connection, the server delivers their messages again.
    await this.#inTime(this.#connection.flush())
  }

  /** Waits for the server, which may be lost, but not long. */
  async #inTime (promise) {
    const given = new AbortController()
    const late = sleep(FLUSH_MS, undefined, { signal: given.signal })
    await Promise.race([promise, late]).catch(() => {})
    late.catch(() => {})
    given.abort()
  }
}

/** Reads what a message's reply subject says: `$JS.ACK.[domain.account.]stream.consumer.delivery.sequence.number.timestamp.…`. */
function deliveryOf (reply) {
  const parts = reply.split('.')
  const first = parts.length === 9 ? 4 : 6
  return { delivery: Number(parts[first]), sequence: Number(parts[first + 1]), number: Number(parts[first + 2]), timestamp: parts[first + 3] }
}

/** The headers of a message, or none if the client cannot read them: publishers may send anything. */
function readableHeaders (message) {
  try {
    return asRecord(message.headers)
  } catch {
    return {}
  }
}

/** Checks a consumer that exists: the trigger decides itself which delivery is the last, so that no message is lost. */
function checkConsumer ({ config }, { consumer, subject, concurrency }) {
  const wrong = (what) => invalidArgument(`the consumer "${consumer}" ${what}; delete it, or name another`)
  if (config.deliver_subject !== undefined) throw wrong('is a push consumer')
  if (config.ack_policy !== 'explicit') throw wrong(`has the ack policy "${config.ack_policy}" instead of "explicit"`)
  if (config.max_deliver > 0) throw wrong(`has max_deliver ${config.max_deliver}, after which a message would be lost`)
  if (config.max_batch > 0 && config.max_batch < 2 * concurrency) throw wrong(`has max_batch ${config.max_batch}, and this trigger requests up to ${2 * concurrency} messages`)
  if (config.max_expires > 0 && config.max_expires < EXPIRES_MS * NANOSECONDS_PER_MS) throw wrong(`has a max_expires of less than ${EXPIRES_MS} ms`)
  if (subject !== undefined && config.filter_subject !== subject) throw wrong(`filters ${JSON.stringify(config.filter_subject ?? '>')} instead of ${JSON.stringify(subject)}`)
}

async function ensureConsumer (manager, options) {
  const { stream, consumer, subject, ackWaitMs } = options
  let info
  try {
    info = await manager.consumers.info(stream, consumer)
  } catch (error) {
    if (error.code !== CONSUMER_NOT_FOUND) throw error
    info = await manager.consumers.add(stream, {
      durable_name: consumer,
      ack_policy: 'explicit',
      ack_wait: ackWaitMs * NANOSECONDS_PER_MS,
      max_deliver: -1,
      filter_subject: subject
    })
  }
  checkConsumer(info, options)
  return info
}

/** Checks that a stream stores the dead letters, and that they do not come back as messages. */
async function checkDeadLetters (manager, { stream, subject, deadLetterSubject }) {
  const found = await manager.streams.find(deadLetterSubject).catch(() => undefined)
  if (found === undefined) throw invalidArgument(`no stream stores the deadLetterSubject "${deadLetterSubject}"; make one, so that dead letters are not lost`)
  if (found === stream && (subject === undefined || subjectMatcher([subject], 'subject')(deadLetterSubject))) {
    throw invalidArgument(`the deadLetterSubject "${deadLetterSubject}" is one of the trigger's own; choose one that it does not receive`)
  }
}

const OWN = ['stream', 'consumer', 'subject', 'ackWaitMs', 'deadLetterSubject', ...REDELIVERY]

async function jetStreamTrigger (connection, options) {
  if (typeof connection?.subscribe !== 'function') {
    throw invalidArgument(`jetStreamTrigger takes a connection of @nats-io/transport-node, not ${describe(connection)}`)
  }
  const given = asTriggerOptions(options, OWN, 'jetStreamTrigger')
  const { stream, consumer, subject, deadLetterSubject } = given
  for (const [name, value] of Object.entries({ stream, consumer })) {
    if (typeof value !== 'string' || !/^[^\s.*>/\\]+$/.test(value)) throw invalidArgument(`${name} must be a name without spaces, dots, * and >, not ${describe(value)}`)
  }
  if (subject !== undefined && !isPattern(subject)) throw invalidArgument(`subject must be a subject such as 'orders.*', not ${describe(subject)}`)
  if (deadLetterSubject !== undefined && !isSubject(deadLetterSubject)) {
    throw invalidArgument(`deadLetterSubject must be a subject without wildcards, not ${describe(deadLetterSubject)}`)
  }
  const checked = {
    ...given,
    ...asRedelivery(given, 'deadLetterSubject'),
    ackWaitMs: asInteger(given.ackWaitMs, 'ackWaitMs', 30_000, MAX_TIMER_MS, 100)
  }
  const { jetstream, jetstreamManager } = peer('@nats-io/jetstream', () => require('@nats-io/jetstream'))
  // Without its check, which needs a permission of its own.
  const manager = await jetstreamManager(connection, { checkAPI: false })
  if (deadLetterSubject !== undefined) await checkDeadLetters(manager, checked)
  const ensure = () => ensureConsumer(manager, checked)
  return new JetStreamTrigger(connection, { client: jetstream(connection), consumer: await ensure(), ensureConsumer: ensure, options: checked })
}

module.exports = { jetStreamTrigger }
