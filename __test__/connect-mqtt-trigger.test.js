'use strict'

const { once } = require('node:events')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { createServer } = require('node:net')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { connectAsync } = require('mqtt')
const { mqttTrigger } = require('../lib/connect.js')
const { guest } = require('./support/guest.js')
const { startMosquitto } = require('./support/mosquitto.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { freePort } = require('./support/redis.js')
const { TriggerChild, handledIn, open: openTrigger, pluginOf, recorder } = require('./support/triggers.js')
const { until } = require('./support/until.js')

jest.setTimeout(60_000)

const open = pluginsOfEachTest()

let directory
let wasm
let broker
let client
let errors
let triggers
let sessions = 0
const onError = (error, origin) => errors.push([error.code, origin.topic])

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  wasm = await guest('message')
  writeFileSync(join(directory, 'message.wasm'), wasm)
  broker = await startMosquitto()
})
afterAll(async () => {
  await broker.stop()
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

beforeEach(async () => {
  errors = []
  triggers = []
  sessions++
  client = await connectAsync(broker.url, { protocolVersion: 5, reconnectPeriod: 20 })
})
afterEach(async () => {
  await Promise.all(triggers.map((trigger) => trigger.close()))
  await client.endAsync(true)
})

/** The session of a test. */
const sessionName = () => `workers-${sessions}`

async function trigger (options) {
  const made = await openTrigger('mqtt', broker.url, { clientId: sessionName(), topic: 'orders/#', function: 'echo', backoffMs: [10], onError, ...options })
  triggers.push(made)
  return made
}

async function publish (count, topic = 'orders/new') {
  await Promise.all(Array.from({ length: count }, (_, index) => client.publishAsync(topic, String(index), { qos: 1 })))
}

/** The messages that the broker still has for a session. */
async function remaining () {
  const left = []
  const plugin = pluginOf((_, text) => { left.push(text) })
  const other = await trigger({ plugin })
  let before
  do {
    before = left.length
    await sleep(200)
  } while (left.length > before)
  await other.close()
  return left
}

test('a trigger calls the plugin with each message, and acknowledges it', async () => {
  const messages = []
  const plugin = await open(wasm)
  const orders = await trigger({ plugin: recorder(plugin, messages) })
  await client.publishAsync('orders/new', 'tea\n5', { qos: 1, properties: { userProperties: { trace: 'abc', tags: ['a', 'b'] } } })
  await until(() => orders.stats().handled === 1)
  expect(messages).toEqual(['{"topic":"orders/new","headers":{"trace":["abc"],"tags":["a","b"]},"redelivered":false}\ntea\n5'])
  expect(orders.stats()).toEqual({ received: 1, handled: 1, failed: 0, redelivered: 0, deadLettered: 0, dropped: 0, inFlight: 0, pending: 0 })
  await orders.close()
  expect(await remaining()).toEqual([])
})

test('a trigger answers where the sender wants it, if the host allows the topic', async () => {
  const plugin = await open(wasm)
  await trigger({ plugin, replyTopics: ['replies/+'] })
  const answers = []
  client.on('message', (topic, payload, { properties }) => answers.push([topic, payload.toString().split('\n')[1], properties?.correlationData?.toString()]))
  await client.subscribeAsync(['replies/#', 'secret'])
  for (const responseTopic of ['secret', 'replies/a/b', 'replies/a']) {
    await client.publishAsync('orders/new', 'tea', { qos: 1, properties: { responseTopic, correlationData: Buffer.from('7') } })
  }
  await until(() => answers.length > 0)
  expect(answers).toEqual([['replies/a', 'tea', '7']])
})

test('the broker keeps messages while no trigger is there', async () => {
  const first = await trigger({ plugin: await open(wasm) })
  await first.close()
  await publish(10)
  const second = await trigger({ plugin: await open(wasm) })
  await until(() => second.stats().handled === 10)
  expect(second.stats().received).toBe(10)
})

test('triggers share the messages of a shared subscription', async () => {
  const options = { plugin: await open(wasm), topic: '$share/workers/shared/#' }
  const both = [await trigger(options), await trigger({ ...options, clientId: `${sessionName()}-b` })]
  await publish(40, 'shared/new')
  const counts = () => both.map((one) => one.stats().handled)
  await until(() => counts()[0] + counts()[1] === 40)
  expect(Math.min(...counts())).toBeGreaterThan(0)
})

test('a message whose call fails gets another, after the pauses, until it succeeds', async () => {
  const times = []
  const heads = []
  const plugin = pluginOf((head) => {
    heads.push(head.redelivered)
    if (times.push(performance.now()) < 4) throw new Error('not yet')
  })
  const orders = await trigger({ plugin, backoffMs: [20, 200] })
  await publish(1)
  await until(() => orders.stats().handled === 1)
  expect(orders.stats()).toMatchObject({ received: 1, handled: 1, failed: 3, redelivered: 3, deadLettered: 0 })
  expect(heads).toEqual([false, true, true, true])
  expect(times[2] - times[1]).toBeGreaterThanOrEqual(199)
  expect(times[3] - times[2]).toBeGreaterThanOrEqual(199)
})

test('a message becomes a dead letter after its last call', async () => {
  const letters = []
  client.on('message', (topic, payload, { properties }) => letters.push([topic, payload.toString(), { ...properties.userProperties }]))
  await client.subscribeAsync('dead/#', { qos: 1 })
  const orders = await trigger({ plugin: await open(wasm), function: 'trap', deadLetterTopic: 'dead/orders', maxDeliver: 3 })
  await client.publishAsync('orders/new', 'tea', { qos: 1, properties: { userProperties: { trace: 'abc' } } })
  await until(() => letters.length === 1 && orders.stats().deadLettered === 1)
  expect(letters).toEqual([['dead/orders', 'tea', { trace: 'abc', 'extism-error': 'TRAP', 'extism-topic': 'orders/new', 'extism-deliveries': '3' }]])
  expect(errors).toEqual(Array(3).fill(['TRAP', 'orders/new']))
  await orders.close()
  expect(await remaining()).toEqual([])
})

test('a message as large as the broker allows becomes a dead letter, too', async () => {
  const small = await startMosquitto(['max_packet_size 1000'])
  const sender = await connectAsync(small.url, { protocolVersion: 5 })
  try {
    const letters = []
    sender.on('message', (topic, payload, { properties }) => letters.push([payload.length, properties?.userProperties]))
    await sender.subscribeAsync('dead/orders', { qos: 1 })
    const orders = await openTrigger('mqtt', small.url, {
      clientId: sessionName(), topic: 'orders/#', plugin: await open(wasm), function: 'trap', backoffMs: [10], onError, deadLetterTopic: 'dead/orders', maxDeliver: 1
    })
    triggers.push(orders)
    await sender.publishAsync('orders/new', Buffer.alloc(970, 'x'), { qos: 1 })
    await until(() => letters.length > 0)
    expect(letters[0]).toEqual([970, undefined])
    expect(orders.stats()).toMatchObject({ received: 1, failed: 1, deadLettered: 1 })
  } finally {
    await sender.endAsync(true)
    await Promise.all(triggers.splice(0).map((trigger) => trigger.close()))
    await small.stop()
  }
})

test('an answer that is larger than the broker allows is reported, and does not end the connection', async () => {
  const small = await startMosquitto(['max_packet_size 1000'])
  const sender = await connectAsync(small.url, { protocolVersion: 5 })
  try {
    const answers = []
    sender.on('message', (_, payload) => answers.push(payload.toString()))
    await sender.subscribeAsync('replies/jane', { qos: 1 })
    const plugin = { call: async (_, input) => ({ bytes: () => Buffer.from(String(input).endsWith('large') ? 'x'.repeat(2_000) : 'small') }) }
    const orders = await openTrigger('mqtt', small.url, { clientId: sessionName(), topic: 'orders/#', plugin, function: 'any', onError, replyTopics: ['replies/+'] })
    triggers.push(orders)
    for (const text of ['large', 'small']) await sender.publishAsync('orders/new', text, { qos: 1, properties: { responseTopic: 'replies/jane' } })
    await until(() => answers.length > 0)
    expect(answers).toEqual(['small'])
    expect(errors).toEqual([['UNSUPPORTED', 'orders/new']])
    expect(orders.stats()).toMatchObject({ received: 2, handled: 2, redelivered: 0 })
  } finally {
    await sender.endAsync(true)
    await Promise.all(triggers.splice(0).map((trigger) => trigger.close()))
    await small.stop()
  }
})

test('a message is not acknowledged until somebody gets its dead letter', async () => {
  const orders = await trigger({ plugin: await open(wasm), function: 'trap', deadLetterTopic: 'nobody/here', maxDeliver: 1 })
  await publish(1)
  await until(() => errors.filter(([code]) => code === 'UNAVAILABLE').length >= 2)
  expect(orders.stats().deadLettered).toBe(0)
  await client.subscribeAsync('nobody/here', { qos: 1 })
  await until(() => orders.stats().deadLettered === 1)
})

test('a trigger that is closed finishes its calls, and leaves the other messages to the next', async () => {
  const calls = []
  const plugin = pluginOf((_, text) => new Promise((resolve) => calls.push(() => resolve(text))))
  const first = await trigger({ plugin, concurrency: 2 })
  await publish(20)
  await until(() => first.stats().inFlight === 2)
  const closed = first.close()
  const timer = setInterval(() => calls.shift()?.(), 5)
  await closed
  clearInterval(timer)
  const { handled } = first.stats()
  expect(first.stats()).toMatchObject({ inFlight: 0, pending: 0, failed: 0 })
  const second = await trigger({ plugin: pluginOf(() => {}) })
  await until(() => second.stats().handled === 20 - handled)
})

test('so many calls run at the same time, and a long one does not hold up others nor the connection', async () => {
  let most = 0
  let running = 0
  let release
  const long = new Promise((resolve) => { release = resolve })
  const plugin = pluginOf(async (_, text) => {
    most = Math.max(most, ++running)
    await (text === '0' ? long : sleep(5))
    running--
  })
  const orders = await openTrigger('mqtt', broker.url, { clientId: sessionName(), function: 'echo', plugin, concurrency: 3, onError })
  triggers.push(orders)
  await publish(6)
  await until(() => orders.stats().handled === 5)
  expect(most).toBe(3)
  await orders.checkReady()
  release()
  await until(() => orders.stats().handled === 6)
})

test('messages with QoS 0 beyond maxPending are dropped', async () => {
  const calls = []
  const orders = await trigger({ plugin: pluginOf(() => new Promise((resolve) => calls.push(resolve))), concurrency: 1, maxPending: 2 })
  for (let sent = 0; sent < 5; sent++) client.publish('orders/new', 'x')
  await until(() => orders.stats().received === 5)
  expect(orders.stats()).toMatchObject({ dropped: 2, inFlight: 1, pending: 2 })
  const timer = setInterval(() => calls.shift()?.(), 5)
  await orders.close()
  clearInterval(timer)
  expect(orders.stats().handled).toBe(3)
})

test('so are those that come while failed ones wait for another call', async () => {
  const plugin = pluginOf(async () => { throw new Error('not today') })
  const orders = await trigger({ plugin, concurrency: 1, maxPending: 2, backoffMs: [60_000] })
  for (let sent = 1; sent <= 5; sent++) {
    client.publish('orders/new', 'x')
    await until(() => orders.stats().received === sent && orders.stats().inFlight === 0)
  }
  expect(orders.stats()).toMatchObject({ dropped: 2, inFlight: 0, pending: 3 })
})

test('messages with QoS 0 that wait are handled although the connection is lost', async () => {
  const calls = []
  const orders = await trigger({ plugin: pluginOf(() => new Promise((resolve) => calls.push(resolve))), concurrency: 1 })
  for (let sent = 0; sent < 3; sent++) client.publish('orders/new', 'x')
  await until(() => orders.stats().received === 3)
  // The broker allows a session one connection: this one ends that of the trigger, whose next one ends this one.
  const other = await connectAsync(broker.url, { protocolVersion: 5, clientId: sessionName(), clean: false, reconnectPeriod: 0, properties: { sessionExpiryInterval: 60 } })
  if (other.connected) await once(other, 'close')
  await other.endAsync(true)
  await until(() => orders.checkReady().then(() => true, () => false))
  const timer = setInterval(() => calls.shift()?.(), 5)
  await until(() => orders.stats().inFlight === 0)
  clearInterval(timer)
  expect(orders.stats()).toMatchObject({ handled: 3, pending: 0 })
})

describe('each message is handled at least once', () => {
  test('if the broker is killed and started again, and each third call traps', async () => {
    const handled = new Set()
    const plugin = await open(wasm, { instances: 2 })
    const recording = {
      async call (...args) {
        await plugin.call(...args)
        handled.add(Buffer.from(args[1]).toString().split('\n')[1])
        await sleep(1)
      }
    }
    const first = await trigger({ plugin: recording })
    await first.close()
    await publish(600)
    // Mosquitto has them in its memory until then.
    await broker.save()
    const orders = await trigger({ plugin: recording, function: 'unreliable', concurrency: 8 })
    for (const count of [100, 200, 300]) {
      await until(() => handled.size >= count)
      await broker.kill()
      await until(() => orders.checkReady().then(() => false, ({ code }) => code === 'UNAVAILABLE'))
      await broker.start()
    }
    // A message that was handled before its broker was killed comes again, and its call can fail then.
    const isIdle = ({ inFlight, pending }) => inFlight + pending === 0
    await until(() => handled.size === 600 && isIdle(orders.stats()))
    await orders.close()
    expect(await remaining()).toEqual([])
    const { failed, redelivered } = orders.stats()
    expect(failed).toBeGreaterThan(100)
    expect(redelivered).toBeGreaterThan(100)
  })

  test('if the process is killed again and again, and each third call traps', async () => {
    const file = join(directory, 'handled.txt')
    const first = await trigger({ plugin: await open(wasm), clientId: 'workers' })
    await first.close()
    await publish(600)
    const child = new TriggerChild('mqtt', broker.url, join(directory, 'message.wasm'), file)
    try {
      for (let kills = 1; kills <= 3; kills++) {
        child.start()
        await until(() => handledIn(file).length >= kills * 100)
        await child.kill()
      }
      child.start()
      await until(() => new Set(handledIn(file)).size === 600)
    } finally {
      await child.kill()
    }
  })
})

describe('a trigger refuses', () => {
  const plugin = pluginOf(() => {})
  const options = { clientId: 'a', topic: 'a', plugin, function: 'f', onError () {} }
  test.each([
    ['options that it does not know', { other: 1 }, /has no "other"/],
    ['no name of a session', { clientId: undefined }, /clientId must/],
    ['a topic that is not one', { topic: 'a#' }, /topic must be/],
    ['maxDeliver without a topic of dead letters', { maxDeliver: 3 }, /maxDeliver needs deadLetterTopic/],
    ['a topic of dead letters with wildcards', { deadLetterTopic: 'dead/+' }, /deadLetterTopic must be/],
    ['a topic of dead letters that it receives itself', { topic: '$share/b/a/#', deadLetterTopic: 'a/dead' }, /one of the trigger's own/],
    ['reply topics that are not topics', { replyTopics: ['a#'] }, /replyTopics must be/]
  ])('%s', async (_, given, message) => {
    await expect(mqttTrigger(broker.url, { ...options, ...given })).rejects.toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) }))
  })

  test('what is not a broker', async () => {
    await expect(mqttTrigger(undefined, options)).rejects.toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })

  test('a broker that does not run', async () => {
    await expect(mqttTrigger('mqtt://127.0.0.1:1', options)).rejects.toThrow('ECONNREFUSED')
  })
})

test('a trigger that could not start does not try again', async () => {
  let connections = 0
  const port = await freePort()
  const options = { clientId: 'a', topic: 'a', plugin: pluginOf(() => {}), function: 'f', onError () {} }
  await expect(mqttTrigger({ url: `mqtt://127.0.0.1:${port}`, reconnectPeriod: 10 }, options)).rejects.toThrow('ECONNREFUSED')
  const server = createServer((socket) => {
    connections++
    socket.destroy()
  })
  await new Promise((resolve) => server.listen(port, '127.0.0.1', resolve))
  await sleep(200)
  server.close()
  expect(connections).toBe(0)
})
