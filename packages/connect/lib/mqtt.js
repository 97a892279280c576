'use strict'

// Publish on a connection to an MQTT broker.

const { MAX_TIMER_MS, asInteger, describe, invalidArgument, pick } = require('extism-host/internal')
const { inTime } = require('./call-end.js')
const { Connection } = require('./connection.js')
const { GuestError } = require('./protocol.js')
const { Slots } = require('./slots.js')
const { isText, isTopic, topicMatcher } = require('./topics.js')

const OPTIONS = { publish: 'publish', retain: 'retain', maxPayloadBytes: 'maxPayloadBytes', maxUnacknowledged: 'maxUnacknowledged', timeoutMs: 'timeoutMs' }

/** The protocol's limit. */
const MAX_BYTES = 268_435_455

const MAX_HEADER_BYTES = 2 ** 15

const NOT_AUTHORIZED = 135

const OK = '{}'

function mqtt (client, options = {}) {
  if (typeof client?.publish !== 'function' || typeof client.subscribe !== 'function' || typeof client.connected !== 'boolean') {
    throw invalidArgument(`mqtt takes a client of mqtt, not ${describe(client)}`)
  }
  const given = pick(options, OPTIONS, 'the options of mqtt')
  const mayPublish = topicMatcher(given.publish, 'publish')
  const mayRetain = topicMatcher(given.retain, 'retain')
  const maxPayloadBytes = asInteger(given.maxPayloadBytes, 'maxPayloadBytes', 2 ** 20, MAX_BYTES)
  const timeoutMs = asInteger(given.timeoutMs, 'timeoutMs', 30_000, MAX_TIMER_MS)
  // The client keeps all that is not acknowledged in memory.
  const slots = new Slots(asInteger(given.maxUnacknowledged, 'maxUnacknowledged', 100, 65_535))

  function messageOf ({ topic, headers, qos = 0, retain = false }, payload) {
    if (!isTopic(topic)) throw new GuestError('INVALID_REQUEST', 'topic must be a topic of MQTT without wildcards')
    if (!mayPublish(topic)) throw new GuestError('NOT_ALLOWED', 'this plugin may not use this topic')
    if (qos !== 0 && qos !== 1) throw new GuestError('INVALID_REQUEST', 'qos must be 0 or 1')
    if (typeof retain !== 'boolean') throw new GuestError('INVALID_REQUEST', 'retain must be true or false')
    if (retain && !mayRetain(topic)) throw new GuestError('NOT_ALLOWED', 'this plugin may not have messages of this topic retained')
    if (payload.length > maxPayloadBytes) throw new GuestError('TOO_LARGE', `a message has up to ${maxPayloadBytes} bytes`)
    return { topic, settings: { qos, retain, ...(headers !== undefined && { properties: { userProperties: userPropertiesOf(headers, client) } }) } }
  }

  return new Connection({
    async publish (request, payload, context) {
      const { topic, settings } = messageOf(request, payload)
      await inTime(context, timeoutMs, async (isOver) => {
        await new Promise((resolve) => slots.acquire(resolve))
        // The client goes on even if the call ends, so the slot is taken until the broker has the message.
        try {
          if (isOver()) return
          // Otherwise the client would store the message until it is connected again.
          if (!client.connected) throw new GuestError('UNAVAILABLE', 'the broker cannot be reached')
          await client.publishAsync(topic, Buffer.from(payload), settings)
        } catch (error) {
          throw error instanceof GuestError ? error : guestErrorOf(error)
        } finally {
          slots.release()
        }
      })
      return OK
    }
  })
}

/** A guest's headers, as the user properties of MQTT 5. Wrong ones would end the connection, which others use too. */
function userPropertiesOf (headers, client) {
  if (client.options?.protocolVersion !== 5) throw new GuestError('UNSUPPORTED', 'headers need a connection with MQTT 5')
  if (typeof headers !== 'object' || headers === null || Array.isArray(headers)) {
    throw new GuestError('INVALID_REQUEST', 'headers must be an object {name: value}')
  }
  const texts = Object.entries(headers).flatMap(([name, values]) => [values].flat().flatMap((value) => [name, value]))
  if (!texts.every(isText)) throw new GuestError('INVALID_REQUEST', 'headers must be strings without control characters')
  if (texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0) > MAX_HEADER_BYTES) {
    throw new GuestError('TOO_LARGE', `headers have up to ${MAX_HEADER_BYTES} bytes`)
  }
  return headers
}

function guestErrorOf (cause) {
  if (cause?.code === NOT_AUTHORIZED) return new GuestError('NOT_ALLOWED', 'the broker refuses this topic', { cause })
  return new GuestError('UNAVAILABLE', 'the broker cannot be reached', { cause })
}

module.exports = { mqtt }
