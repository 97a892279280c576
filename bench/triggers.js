'use strict'

// Messages per second through a trigger and a plugin, beside the same handler in JavaScript. See README.md.

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const mqtt = require('mqtt')
const { connect } = require('@nats-io/transport-node')
const { jetstream, jetstreamManager } = require('@nats-io/jetstream')
const { createPlugin } = require('../index.js')
const { jetStreamTrigger, mqttTrigger, natsTrigger } = require('../lib/connect.js')
const { assemble } = require('../__test__/support/guest.js')
const { startMosquitto } = require('../__test__/support/mosquitto.js')
const { startNats } = require('../__test__/support/nats.js')
const { start, temporaryDirectory } = require('./support/children.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const TEXT = '{"order": 12345, "product": "tea", "amount": 5}'
const CONCURRENCY = 64
const JAVASCRIPT = 'plain JavaScript'
const PLUGIN = 'extism-host'

/** The plugin's function, in JavaScript. */
function countVowels (bytes) {
  let count = 0
  for (let i = 0; i < bytes.length; i++) {
    const letter = bytes[i] | 32
    if (letter === 97 || letter === 101 || letter === 105 || letter === 111 || letter === 117) count++
  }
  return Buffer.from(`{"count": ${count}}`)
}

function fail (error) {
  console.error(error)
  process.exit(1)
}

/** Resolves once `count` messages are handled. */
function countdown (count) {
  let resolve
  const promise = new Promise((_resolve) => { resolve = _resolve })
  return { promise, done () { if (--count === 0) resolve() } }
}

/** The plugin, which tells after each call. */
const counted = (plugin, done) => ({
  call (...args) {
    const call = plugin.call(...args)
    call.then(done)
    return call
  }
})

/** With `isAnswered`, each message wants an answer, which nobody receives. */
async function natsSubjects (plugin, messages, isAnswered) {
  const server = await startNats()
  const connection = await connect({ servers: server.url })
  const publisher = start(['bench/children/nats-publisher.js', server.url, 'orders.new', TEXT, ...(isAnswered ? ['answers'] : [])], { stdio: ['pipe', 'pipe', 'inherit'] })
  await new Promise((resolve) => publisher.stdout.once('data', resolve))
  const measure = (open) => async () => {
    const { promise, done } = countdown(messages)
    const close = open(done)
    await connection.flush()
    const begin = performance.now()
    publisher.stdin.write(`${messages}\n`)
    await promise
    const seconds = (performance.now() - begin) / 1e3
    await close()
    return { perSecond: messages / seconds }
  }
  return {
    subjects: [
      {
        name: JAVASCRIPT,
        measure: measure((done) => {
          const subscription = connection.subscribe('orders.*', {
            callback (error, message) {
              if (error) fail(error)
              const output = countVowels(message.data)
              if (message.reply) message.respond(output)
              done()
            }
          })
          return () => subscription.drain()
        })
      },
      {
        name: PLUGIN,
        measure: measure((done) => {
          const trigger = natsTrigger(connection, {
            subject: 'orders.*', plugin: counted(plugin, done), function: 'count_vowels', concurrency: CONCURRENCY, maxPending: messages, onError: fail
          })
          return () => trigger.close()
        })
      }
    ],
    async close () {
      publisher.kill()
      await connection.close()
      await server.stop()
    }
  }
}

/** Each measurement has a consumer of its own, for the same messages in the stream. */
async function jetStreamSubjects (plugin, messages) {
  const server = await startNats(['-js', '-sd', temporaryDirectory()])
  const connection = await connect({ servers: server.url })
  const manager = await jetstreamManager(connection)
  const client = jetstream(connection)
  await manager.streams.add({ name: 'ORDERS', subjects: ['orders.*'], storage: 'memory' })
  for (let left = messages; left > 0; left -= 100) await Promise.all(Array.from({ length: 100 }, () => client.publish('orders.new', TEXT)))
  let consumers = 0
  const measure = (open) => async () => {
    const { promise, done } = countdown(messages)
    const consumer = `c${consumers++}`
    await manager.consumers.add('ORDERS', { durable_name: consumer, ack_policy: 'explicit' })
    const begin = performance.now()
    const close = await open(consumer, done)
    await promise
    const seconds = (performance.now() - begin) / 1e3
    await close()
    await manager.consumers.delete('ORDERS', consumer)
    return { perSecond: messages / seconds }
  }
  return {
    subjects: [
      {
        name: JAVASCRIPT,
        measure: measure(async (name, done) => {
          const consumer = await client.consumers.get('ORDERS', name)
          const iterator = await consumer.consume({
            max_messages: 2 * CONCURRENCY,
            callback (message) {
              countVowels(message.data)
              message.ack()
              done()
            }
          })
          return () => iterator.close()
        })
      },
      {
        name: PLUGIN,
        measure: measure(async (consumer, done) => {
          const trigger = await jetStreamTrigger(connection, {
            stream: 'ORDERS', consumer, plugin: counted(plugin, done), function: 'count_vowels', concurrency: CONCURRENCY, onError: fail
          })
          return () => trigger.close()
        })
      }
    ],
    async close () {
      await connection.close()
      await server.stop()
    }
  }
}

/** The broker has the messages before a measurement begins. */
async function mqttSubjects (plugin, messages) {
  const broker = await startMosquitto()
  const publisher = await mqtt.connectAsync(broker.url, { protocolVersion: 5 })
  const session = { clientId: 'bench', clean: false, protocolVersion: 5, properties: { sessionExpiryInterval: 3600, receiveMaximum: 2 * CONCURRENCY } }
  const measure = (open) => async () => {
    const first = await mqtt.connectAsync(broker.url, session)
    await first.subscribeAsync('orders/+', { qos: 1 })
    await first.endAsync()
    for (let left = messages; left > 0; left -= 100) await Promise.all(Array.from({ length: 100 }, () => publisher.publishAsync('orders/new', TEXT, { qos: 1 })))
    const { promise, done } = countdown(messages)
    const begin = performance.now()
    const close = await open(done)
    await promise
    const seconds = (performance.now() - begin) / 1e3
    await close()
    return { perSecond: messages / seconds }
  }
  return {
    subjects: [
      {
        name: JAVASCRIPT,
        measure: measure(async (done) => {
          const client = mqtt.connect(broker.url, session)
          client.on('message', (_, payload) => {
            countVowels(payload)
            done()
          })
          return () => client.endAsync()
        })
      },
      {
        name: PLUGIN,
        measure: measure(async (done) => {
          const trigger = await mqttTrigger(broker.url, {
            clientId: 'bench', topic: 'orders/+', plugin: counted(plugin, done), function: 'count_vowels', concurrency: CONCURRENCY, onError: fail
          })
          return () => trigger.close()
        })
      }
    ],
    async close () {
      await publisher.endAsync(true)
      await broker.stop()
    }
  }
}

const KINDS = {
  NATS: natsSubjects,
  'NATS, with answers': (plugin, messages) => natsSubjects(plugin, messages, true),
  JetStream: jetStreamSubjects,
  MQTT: mqttSubjects
}

async function main () {
  const options = readOptions({ rounds: 9, messages: 20_000 })
  const text = readFileSync(join(__dirname, 'support/count-vowels.wat'), 'utf8')
  const plugin = await createPlugin(await assemble(text), { instances: 1 })
  const results = {}
  for (const [kind, open] of Object.entries(KINDS)) {
    const { subjects, close } = await open(plugin, options.messages)
    results[kind] = await alternate(options.rounds, subjects, ({ measure }) => measure())
    await close()
  }
  await plugin.close()
  const perSecond = (kind, name) => medians(results[kind][name]).perSecond
  printTable('Messages per second', Object.keys(results).map((kind) => ({
    broker: kind,
    [JAVASCRIPT]: Math.round(perSecond(kind, JAVASCRIPT)).toLocaleString('en'),
    [PLUGIN]: Math.round(perSecond(kind, PLUGIN)).toLocaleString('en'),
    ratio: (perSecond(kind, PLUGIN) / perSecond(kind, JAVASCRIPT)).toFixed(2)
  })))
  save(options, results)
}

main()
