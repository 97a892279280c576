'use strict'

// Calls a plugin for each message of a topic of MQTT, at least once: a message is acknowledged only after its call has succeeded,
// or after the broker has its dead letter.

const { setTimeout: sleep } = require('node:timers/promises')
const { MAX_U32, asInteger, codedError, describe, invalidArgument, isObject } = require('extism-host/internal')
const { peer } = require('./peer.js')
const { withPayload } = require('./protocol.js')
const { isFilter, isTopic, topicMatcher } = require('./topics.js')
const { Batch, MessageQueue, REDELIVERY, asRedelivery, asTriggerOptions, callPlugin, codeOf, isTransient, newCounts, pauseAfter } = require('./trigger.js')

const WEEK_SECONDS = 7 * 24 * 60 * 60

/** The time limit of the broker's answer to a dead letter, and of a graceful end. */
const BROKER_MS = 10_000

/** The most bytes that a packet has beside its topic, its properties and its payload. */
const FIXED_BYTES = 16

/** The protocol's limit. */
const MAX_RECEIVE = 65_535

/** The reason code of a message that the broker has dropped, because nobody subscribes to its topic. */
const NO_SUBSCRIBERS = 16

/** Makes mqtt.js handle the next packet, but not acknowledge this one. */
const ACKNOWLEDGED_LATER = new Error('the trigger acknowledges this message itself')

/** The messages of one connection. Acknowledgements are valid on their own connection only. */
class Delivery {
  /** In the order in which they came: the protocol requires this order for their acknowledgements. */
  unacknowledged = []
  /** Whether the broker delivers those again that were not acknowledged. */
  isRepeated = false
}

class MqttTrigger {
  #client
  #options
  #queue
  #counts = newCounts()
  #acknowledgements = new Batch()
  #delivery = new Delivery()
  #interrupted = []
  /** The timers of messages that wait for another call. */
  #pauses = new Set()
  /** The messages of the trigger that the broker has dropped. */
  #withoutSubscribers = new Set()
  /** The largest packet that the broker takes. */
  #maximumPacketSize = Infinity
  #isSubscribed = false
  #isClosing = false
  #closed

  constructor (client, options) {
    this.#client = client
    this.#options = options
    this.#queue = new MessageQueue(options.concurrency, (message) => this.#handle(message))
    // mqtt.js handles one message at a time, and no other packet meanwhile. To go on with the next message, and with the answers
    // to pings, the trigger acknowledges messages itself.
    client.handleMessage = (packet, done) => {
      this.#receive(packet, packet.qos === 2 ? done : undefined)
      if (packet.qos !== 2) done(packet.qos === 1 ? ACKNOWLEDGED_LATER : undefined)
    }
    client.on('error', (error) => this.#report(error))
    client.on('close', () => this.#interrupt())
    // The event `connect` may come after the first messages.
    client.on('packetreceive', (packet) => {
      if (packet.cmd === 'connack') this.#resume(packet)
      // mqtt.js takes this for success, and does not pass it on.
      if (packet.cmd === 'puback' && packet.reasonCode === NO_SUBSCRIBERS) this.#withoutSubscribers.add(packet.messageId)
    })
  }

  /** Connects and subscribes. If it fails, the client is closed. */
  async start () {
    try {
      await new Promise((resolve, reject) => {
        this.#client.once('connect', resolve)
        this.#client.once('error', reject)
        this.#client.once('close', () => reject(codedError('UNAVAILABLE', 'the broker has closed the connection')))
        this.#client.connect()
      })
      const { topic } = this.#options
      // Retained messages come with the first subscription only, or each start would handle them again.
      const [granted] = await this.#client.subscribeAsync(topic, { qos: 1, rh: 1 })
      if (granted?.qos !== 1) throw codedError('ACCESS_DENIED', `the broker refuses the subscription to "${topic}" with QoS 1`)
      this.#isSubscribed = true
    } catch (error) {
      await this.#end(true)
      throw error
    }
  }

  /** Ends the client. One with `manualConnect` would connect again if its connection is lost after that. */
  async #end (isForced) {
    this.#client.options.reconnectPeriod = 0
    // If the broker is lost meanwhile, the client waits forever for the acknowledgements of answers.
    const ended = new AbortController()
    const late = sleep(BROKER_MS, undefined, { signal: ended.signal }).then(() => this.#client.stream.destroy())
    late.catch(() => {})
    await Promise.race([this.#client.endAsync(isForced), late])
    ended.abort()
  }

  #report (error, topic = this.#options.topic) {
    this.#options.onError(error, { topic })
  }

  #interrupt () {
    this.#interrupted.push(this.#delivery)
    this.#delivery = new Delivery()
  }

  /** If the broker has kept the session, it delivers all messages again that were not acknowledged. Otherwise the calls go on. */
  #resume ({ sessionPresent, properties }) {
    this.#maximumPacketSize = properties?.maximumPacketSize ?? Infinity
    for (const delivery of this.#interrupted.splice(0)) delivery.isRepeated = sessionPresent
  }

  #receive (packet, done) {
    // It comes again with the next connection.
    if (this.#isClosing) return
    this.#counts.received++
    if (packet.dup) this.#counts.redelivered++
    // Those that have failed wait, too: without a limit, messages that fail at once would fill the memory.
    if (packet.qos === 0 && this.#pending + (this.#queue.isBusy ? 1 : 0) > this.#options.maxPending) {
      this.#counts.dropped++
      return
    }
    const message = { packet, delivery: this.#delivery, attempts: 0, isSettled: false, done }
    if (packet.qos === 1) this.#delivery.unacknowledged.push(message)
    this.#queue.add(message)
  }

  async #handle (message) {
    const { packet } = message
    if (message.delivery.isRepeated && packet.qos > 0) return
    message.attempts++
    if (message.attempts > 1) this.#counts.redelivered++
    try {
      const isRepeated = packet.dup || message.attempts > 1
      const head = `{"topic":${JSON.stringify(packet.topic)},"headers":${headersJson(packet)},"redelivered":${isRepeated}}`
      const output = await callPlugin(this.#options, withPayload(head, packet.payload))
      this.#counts.handled++
      this.#reply(packet, output)
      this.#settle(message)
    } catch (error) {
      this.#counts.failed++
      this.#report(error, packet.topic)
      if (message.attempts < this.#options.maxDeliver || isTransient(error) || !await this.#publishDeadLetter(message, error)) {
        this.#retry(message)
      } else {
        this.#counts.deadLettered++
        this.#settle(message)
      }
    }
  }

  #retry (message) {
    if (this.#isClosing) return
    const timer = setTimeout(() => {
      this.#pauses.delete(timer)
      // The acknowledgements of later messages wait for this one.
      this.#queue.addFirst(message)
    }, pauseAfter(message.attempts, this.#options.backoffMs))
    this.#pauses.add(timer)
  }

  #settle (message) {
    message.isSettled = true
    message.done?.()
    if (this.#delivery.unacknowledged[0]?.isSettled) this.#acknowledgements.add(this.#acknowledge)
  }

  #acknowledge = () => {
    const { unacknowledged } = this.#delivery
    const end = unacknowledged.findIndex(({ isSettled }) => !isSettled)
    for (const { packet: { messageId } } of unacknowledged.splice(0, end === -1 ? unacknowledged.length : end)) {
      this.#client._sendPacket({ cmd: 'puback', messageId, reasonCode: 0 })
    }
  }

  #reply ({ topic, properties }, output) {
    const responseTopic = properties?.responseTopic
    if (responseTopic === undefined || !isTopic(responseTopic) || !this.#options.mayReply(responseTopic)) return
    const { correlationData } = properties
    const payload = Buffer.from(output?.bytes() ?? [])
    if (this.#isTooLarge(responseTopic, payload, correlationData?.length ?? 0)) return this.#report(tooLarge('the answer'), topic)
    this.#client.publish(responseTopic, payload, { qos: 1, properties: { correlationData } }, (error, sent) => {
      this.#withoutSubscribers.delete(sent?.messageId)
      if (error) this.#report(error, topic)
    })
  }

  /** Whether the broker would close the connection for a packet. The client would send it again with each connection. */
  #isTooLarge (topic, payload, propertyBytes) {
    return payload.length + Buffer.byteLength(topic) + propertyBytes + FIXED_BYTES > this.#maximumPacketSize
  }

  /** Resolves to whether the broker has the dead letter. */
  async #publishDeadLetter ({ packet, attempts }, error) {
    const { deadLetterTopic } = this.#options
    const settings = { qos: 1 }
    if (this.#client.options.protocolVersion === 5) {
      const added = { 'extism-error': codeOf(error), 'extism-topic': packet.topic, 'extism-deliveries': String(attempts) }
      const given = packet.properties?.userProperties
      const all = { ...given, ...added }
      settings.properties = { userProperties: this.#isTooLarge(deadLetterTopic, packet.payload, sizeOf(all)) ? given : all }
    }
    const stored = new AbortController()
    const late = sleep(BROKER_MS, undefined, { signal: stored.signal }).then(() => {
      throw codedError('UNAVAILABLE', 'the broker has not acknowledged the dead letter')
    })
    late.catch(() => {})
    try {
      if (this.#isTooLarge(deadLetterTopic, packet.payload, sizeOf(settings.properties?.userProperties))) throw tooLarge('the dead letter')
      const sent = await Promise.race([this.#client.publishAsync(deadLetterTopic, packet.payload, settings), late])
      if (this.#withoutSubscribers.delete(sent?.messageId)) {
        throw codedError('UNAVAILABLE', `nobody subscribes to the deadLetterTopic "${deadLetterTopic}", so the broker drops dead letters`)
      }
      return true
    } catch (error) {
      this.#report(error, packet.topic)
      return false
    } finally {
      stored.abort()
    }
  }

  /** The number of messages that wait for a call. */
  get #pending () {
    return this.#queue.pending + this.#pauses.size
  }

  stats () {
    return { ...this.#counts, inFlight: this.#queue.inFlight, pending: this.#pending }
  }

  async checkReady () {
    if (!this.#client.connected || !this.#isSubscribed) throw codedError('UNAVAILABLE', 'the broker cannot be reached')
  }

  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    this.#isClosing = true
    for (const timer of this.#pauses) clearTimeout(timer)
    this.#pauses.clear()
    await this.#queue.idle()
    this.#acknowledgements.flush()
    // Ending gracefully sends the acknowledgements.
    await this.#end(!this.#client.connected)
  }
}

/** The headers of a message as JSON: its user properties. MQTT 3.1.1 has none. */
function headersJson ({ properties }) {
  if (properties?.userProperties === undefined) return '{}'
  const headers = Object.create(null)
  for (const [name, value] of Object.entries(properties.userProperties)) headers[name] = [value].flat()
  return JSON.stringify(headers)
}

const tooLarge = (what) => codedError('UNSUPPORTED', `${what} is larger than the packets that the broker takes`)

/** The most bytes that user properties take in a packet. */
function sizeOf (userProperties = {}) {
  const texts = Object.entries(userProperties).flatMap(([name, values]) => [values].flat().flatMap((value) => [name, value]))
  return texts.reduce((sum, text) => sum + Buffer.byteLength(text) + 3, 0)
}

/** The options of the client. The session outlives its connections: the broker keeps messages while there is none. */
function clientOptionsOf (given, clientId, concurrency) {
  return {
    protocolVersion: 5,
    reconnectOnConnackError: true,
    ...given,
    clientId,
    clean: false,
    manualConnect: true,
    ...((given.protocolVersion ?? 5) === 5 && {
      properties: {
        sessionExpiryInterval: WEEK_SECONDS,
        receiveMaximum: Math.min(2 * concurrency, MAX_RECEIVE),
        ...given.properties
      }
    })
  }
}

const OWN = ['clientId', 'topic', 'maxPending', 'deadLetterTopic', 'replyTopics', ...REDELIVERY]

async function mqttTrigger (broker, options) {
  if (typeof broker !== 'string' && !isObject(broker)) {
    throw invalidArgument(`mqttTrigger takes the URL of a broker, or an object with it and the options of mqtt.connect, not ${describe(broker)}`)
  }
  const given = asTriggerOptions(options, OWN, 'mqttTrigger')
  const { clientId, topic, deadLetterTopic } = given
  if (typeof clientId !== 'string' || clientId === '') throw invalidArgument(`clientId must name the session, such as 'orders-1', not ${describe(clientId)}`)
  if (!isFilter(topic)) throw invalidArgument(`topic must be a topic such as 'sensors/+', not ${describe(topic)}`)
  if (deadLetterTopic !== undefined && !isTopic(deadLetterTopic)) {
    throw invalidArgument(`deadLetterTopic must be a topic without wildcards, not ${describe(deadLetterTopic)}`)
  }
  if (deadLetterTopic !== undefined && topicMatcher([topic.replace(/^\$share\/[^/]+\//, '')])(deadLetterTopic)) {
    throw invalidArgument(`the deadLetterTopic "${deadLetterTopic}" is one of the trigger's own; choose one that it does not receive`)
  }
  const checked = {
    ...given,
    ...asRedelivery(given, 'deadLetterTopic'),
    maxPending: asInteger(given.maxPending, 'maxPending', 1_000, MAX_U32, 0),
    mayReply: topicMatcher(given.replyTopics, 'replyTopics')
  }
  const { connect } = peer('mqtt', () => require('mqtt'))
  const { url, ...clientOptions } = typeof broker === 'string' ? { url: broker } : broker
  const allOptions = clientOptionsOf(clientOptions, clientId, checked.concurrency)
  const trigger = new MqttTrigger(url === undefined ? connect(allOptions) : connect(url, allOptions), checked)
  await trigger.start()
  return trigger
}

module.exports = { mqttTrigger }
