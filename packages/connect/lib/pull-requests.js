'use strict'

// Requests for the messages of a JetStream consumer. The client's own `fetch` subscribes anew for each request and makes promises
// for each message, which takes as long as the call of a plugin.

const { codedError } = require('extism-host/internal')
const { peer } = require('./peer.js')

const NANOSECONDS_PER_MS = 1e6

/** A request that gets no messages ends after this time. */
const EXPIRES_MS = 30_000

/** So often the server says meanwhile that a request still waits. */
const HEARTBEAT_MS = 5_000

/** Statuses of the server: https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-37.md */
const HEARTBEAT = 100
const NO_MESSAGES = 404
const REQUEST_EXPIRED = 408

class PullRequests {
  #connection
  #subject
  #limits
  #silenceMs
  #inbox
  #subscription
  #onMessage
  #onEnd
  #onFailure
  /** The number of messages that have been requested and have not come. */
  #pending = 0
  #heardAt = 0
  #isConnected = true
  #statuses
  #timer

  /**
   * `subject` takes the requests. `onEnd` is called when one has ended without all of its messages. `onFailure` is called with an
   * error, or without one after a reconnection; the requests that were made may be lost then, see `restart`.
   */
  constructor (connection, subject, { onMessage, onEnd, onFailure, expiresMs = EXPIRES_MS, heartbeatMs = HEARTBEAT_MS }) {
    this.#connection = connection
    this.#subject = subject
    this.#onMessage = onMessage
    this.#onEnd = onEnd
    this.#onFailure = onFailure
    this.#limits = { expires: expiresMs * NANOSECONDS_PER_MS, idle_heartbeat: heartbeatMs * NANOSECONDS_PER_MS }
    this.#silenceMs = 2 * heartbeatMs
    this.#subscribe()
    this.#timer = setInterval(() => this.#checkHeard(), heartbeatMs)
    this.#timer.unref()
    this.#statuses = connection.status()
    this.#watch()
  }

  #subscribe () {
    const { createInbox } = peer('@nats-io/transport-node', () => require('@nats-io/transport-node'))
    const inbox = createInbox(this.#connection.options?.inboxPrefix)
    this.#subscription = this.#connection.subscribe(inbox, {
      callback: (error, message) => {
        if (error) this.#onFailure(error)
        else this.#receive(message, inbox)
      }
    })
    this.#inbox = inbox
  }

  get pending () {
    return this.#pending
  }

  request (count) {
    if (this.#pending === 0) this.#heardAt = performance.now()
    this.#pending += count
    try {
      this.#connection.publish(this.#subject, JSON.stringify({ batch: count, ...this.#limits }), { reply: this.#inbox })
    } catch (error) {
      // For example because the connection is being drained.
      this.#onFailure(error)
    }
  }

  /**
   * Ends the requests that were made. Resolves once their messages that are on their way have come. The server may still have
   * the requests after a reconnection, and drops those of an inbox that nobody subscribes to.
   */
  async restart () {
    const former = this.#subscription
    this.#subscribe()
    this.#pending = 0
    // It fails if the server has refused the subscription.
    await former.drain().catch(() => {})
  }

  #receive (message, inbox) {
    this.#heardAt = performance.now()
    const isFormer = inbox !== this.#inbox
    // Messages of the stream keep their subject.
    if (message.subject !== inbox) {
      if (!isFormer && this.#pending > 0) this.#pending--
      return this.#onMessage(message)
    }
    if (isFormer) return
    let headers
    try {
      headers = message.headers
    } catch (error) {
      // Somebody else has sent headers that the client cannot read. Thrown from here, the error would end its reading for good.
      return this.#onFailure(error)
    }
    const { code, description } = headers ?? {}
    if (code === HEARTBEAT) return
    if (code !== NO_MESSAGES && code !== REQUEST_EXPIRED) {
      return this.#onFailure(codedError('UNAVAILABLE', `JetStream refuses to send messages: ${code} ${description}`))
    }
    const missing = Number(headers.get('Nats-Pending-Messages'))
    this.#pending = missing > 0 ? Math.max(0, this.#pending - missing) : 0
    this.#onEnd()
  }

  #checkHeard () {
    if (this.#pending === 0 || !this.#isConnected || performance.now() - this.#heardAt < this.#silenceMs) return
    this.#onFailure(codedError('UNAVAILABLE', `JetStream has sent neither messages nor heartbeats for ${this.#silenceMs} ms`))
  }

  async #watch () {
    for await (const { type, error } of this.#statuses) {
      if (type === 'error' && error.operation === 'publish' && error.subject === this.#subject) this.#onFailure(error)
      if (type === 'disconnect') this.#isConnected = false
      if (type !== 'reconnect') continue
      this.#isConnected = true
      this.#onFailure()
    }
  }

  /** Resolves once the messages that are on their way have come. */
  async close () {
    clearInterval(this.#timer)
    this.#statuses.stop()
    await this.#subscription.drain()
  }
}

module.exports = { EXPIRES_MS, NANOSECONDS_PER_MS, PullRequests }
