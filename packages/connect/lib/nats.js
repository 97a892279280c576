'use strict'

// Publish and request on a connection to NATS.

const { setTimeout: sleep } = require('node:timers/promises')
const { MAX_TIMER_MS, asInteger, describe, invalidArgument, pick } = require('extism-host/internal')
const { inTime } = require('./call-end.js')
const { Connection } = require('./connection.js')
const { headersJson, headersOf, newHeaders } = require('./nats-headers.js')
const { GuestError, withPayload } = require('./protocol.js')
const { isSubject, subjectMatcher } = require('./subjects.js')

const OPTIONS = {
  publish: 'publish',
  request: 'request',
  maxPayloadBytes: 'maxPayloadBytes',
  maxUnflushedBytes: 'maxUnflushedBytes',
  timeoutMs: 'timeoutMs'
}

const MAX_BYTES = 2 ** 31 - 1

/** The pause after a failed flush. */
const FLUSH_PAUSE_MS = 50

const OK = '{}'

function nats (connection, options = {}) {
  if (typeof connection?.publish !== 'function' || typeof connection.request !== 'function' || typeof connection.flush !== 'function') {
    throw invalidArgument(`nats takes a connection of @nats-io/transport-node, not ${describe(connection)}`)
  }
  const makeHeaders = newHeaders()
  const given = pick(options, OPTIONS, 'the options of nats')
  const mayPublish = subjectMatcher(given.publish, 'publish')
  const mayRequest = subjectMatcher(given.request, 'request')
  const maxPayloadBytes = asInteger(given.maxPayloadBytes, 'maxPayloadBytes', MAX_BYTES, MAX_BYTES)
  const timeoutMs = asInteger(given.timeoutMs, 'timeoutMs', 30_000, MAX_TIMER_MS)
  const flow = new Flow(connection, asInteger(given.maxUnflushedBytes, 'maxUnflushedBytes', 2 ** 20, MAX_BYTES), timeoutMs)

  function messageOf (request, payload, isAllowed) {
    const { subject } = request
    if (!isSubject(subject)) throw new GuestError('INVALID_REQUEST', 'subject must be a subject of NATS without wildcards')
    if (!isAllowed(subject)) throw new GuestError('NOT_ALLOWED', 'this plugin may not use this subject')
    const head = request.headers === undefined ? undefined : headersOf(request.headers, makeHeaders())
    const size = payload.length + (head === undefined ? 0 : head.encode().length)
    const most = Math.min(maxPayloadBytes, connection.info?.max_payload ?? MAX_BYTES)
    if (size > most) throw new GuestError('TOO_LARGE', `a message has up to ${most} bytes, headers included`)
    return { subject, head, size }
  }

  return new Connection({
    publish (request, payload, context) {
      const { subject, head, size } = messageOf(request, payload, mayPublish)
      const send = () => {
        try {
          connection.publish(subject, payload, { headers: head })
        } catch (error) {
          throw guestErrorOf(error)
        }
        return OK
      }
      const wait = flow.add(size)
      if (wait === undefined) return send()
      const { signal } = context
      return wait.then(() => {
        if (signal.aborted) throw new GuestError('TIMEOUT', 'the call has ended')
        return send()
      })
    },

    async request (request, payload, context) {
      const { subject, head } = messageOf(request, payload, mayRequest)
      const timeout = Math.min(timeoutOf(request.timeoutMs), timeoutMs)
      let answer
      try {
        answer = await inTime(context, timeoutMs, () => connection.request(subject, payload, { timeout, headers: head }))
      } catch (error) {
        throw guestErrorOf(error)
      }
      if (answer.data.length > maxPayloadBytes) throw new GuestError('TOO_LARGE', `an answer has up to ${maxPayloadBytes} bytes`)
      return withPayload(`{"headers":${headersJson(answer)}}`, answer.data)
    }
  })
}

/**
 * Back-pressure. The client buffers without limit while the connection is slow or lost, so guests wait for a flush
 * whenever that many bytes have been published since the last one.
 */
class Flow {
  #connection
  #most
  #timeoutMs
  #unflushed = 0
  #flushing

  constructor (connection, most, timeoutMs) {
    this.#connection = connection
    this.#most = most
    this.#timeoutMs = timeoutMs
  }

  /** Counts a message. Returns a promise if it must wait. */
  add (size) {
    return this.#count(size) ? undefined : this.#wait(size)
  }

  /** Returns whether the message may be sent. One that is too large for any flush is sent alone. */
  #count (size) {
    const isRoom = this.#flushing === undefined && (this.#unflushed === 0 || this.#unflushed + size <= this.#most)
    if (isRoom) this.#unflushed += size
    return isRoom
  }

  async #wait (size) {
    do {
      this.#flushing ??= this.#flush()
      await this.#inTime(this.#flushing)
    } while (!this.#count(size))
  }

  async #flush () {
    try {
      while (!await this.#tryFlush()) await sleep(FLUSH_PAUSE_MS, undefined, { ref: false })
      this.#unflushed = 0
    } finally {
      this.#flushing = undefined
    }
  }

  /** A flush fails whenever the client fails to connect again. */
  async #tryFlush () {
    try {
      await this.#connection.flush()
      return true
    } catch (error) {
      if (this.#connection.isClosed()) throw guestErrorOf(error)
      return false
    }
  }

  async #inTime (flushing) {
    let timer
    const late = new Promise((resolve, reject) => {
      timer = setTimeout(() => reject(new GuestError('UNAVAILABLE', 'the broker cannot be reached')), this.#timeoutMs)
    })
    try {
      await Promise.race([flushing, late])
    } finally {
      clearTimeout(timer)
    }
  }
}

function timeoutOf (value) {
  if (value === undefined) return Infinity
  if (!Number.isInteger(value) || value < 1) throw new GuestError('INVALID_REQUEST', 'timeoutMs must be a whole number from 1')
  return value
}

function guestErrorOf (cause) {
  if (cause instanceof GuestError) return cause
  const names = [cause?.name, cause?.cause?.name]
  const is = (name) => names.includes(name)
  if (is('TimeoutError')) return new GuestError('TIMEOUT', 'nobody has answered in time')
  if (is('NoResponders')) return new GuestError('NO_RESPONDERS', 'nobody subscribes to this subject')
  if (is('PermissionViolationError')) return new GuestError('NOT_ALLOWED', 'the broker refuses this subject', { cause })
  return new GuestError('UNAVAILABLE', 'the broker cannot be reached', { cause })
}

module.exports = { nats }
