'use strict'

const { connectAsync } = require('mqtt')
const { connect, mqtt } = require('../lib/connect.js')
const { guest } = require('./support/guest.js')
const { startMosquitto } = require('./support/mosquitto.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { until } = require('./support/until.js')

const open = pluginsOfEachTest()

let wasm
let broker
let client
beforeAll(async () => {
  wasm = await guest('connected')
  broker = await startMosquitto()
})
afterAll(() => broker.stop())

beforeEach(async () => { client = await connectAsync(broker.url, { protocolVersion: 5, reconnectPeriod: 20 }) })
afterEach(() => client.endAsync(true))

/** A plugin with a connection `sensors`; its calls resolve to the reply. */
async function connected (options, { onError, given = client, ...pluginOptions } = {}) {
  const plugin = await open(wasm, { ...pluginOptions, functions: connect({ sensors: mqtt(given, options) }, { onError }) })
  return async (request, payload = '', name = 'publish', callOptions = undefined) => {
    const head = Buffer.from(`${JSON.stringify({ connection: 'sensors', ...request })}\n`)
    return JSON.parse((await plugin.call(name, Buffer.concat([head, Buffer.from(payload)]), null, callOptions)).text())
  }
}

/** The messages of a topic, as they come. */
async function received (topic) {
  const messages = []
  client.on('message', (topic, payload, { qos, retain, properties }) => messages.push([topic, payload, qos, retain, { ...properties?.userProperties }]))
  await client.subscribeAsync(topic, { qos: 1, rap: true })
  return messages
}

const codeOf = async (call) => (await call).error?.code

test('publish sends the bytes after the first line, with headers', async () => {
  const messages = await received('sensors/#')
  const call = await connected({ publish: ['sensors/+'], retain: ['sensors/+'] })
  const bytes = Buffer.from([0, 10, 255, 10])
  expect(await call({ topic: 'sensors/1', qos: 1, headers: { trace: 'abc', tag: ['a', 'b'] } }, bytes)).toEqual({})
  expect(await call({ topic: 'sensors/2', retain: true })).toEqual({})
  await until(() => messages.length === 2)
  expect(messages).toEqual([
    ['sensors/1', bytes, 1, false, { trace: 'abc', tag: ['a', 'b'] }],
    ['sensors/2', Buffer.alloc(0), 0, true, {}]
  ])
})

test.each([
  ['sensors/+', 'sensors/1', true],
  ['sensors/+', 'sensors/1/2', false],
  ['sensors/+', 'sensors', false],
  ['sensors/#', 'sensors/1/2', true],
  ['sensors/#', 'sensors', true],
  ['+/1', 'sensors/1', true],
  ['sensors/1', 'sensors/10', false],
  ['#', 'anything/at/all', true],
  ['#', '$SYS/broker', false],
  ['+/broker', '$SYS/broker', false],
  ['$SYS/#', '$SYS/broker', true]
])('with "%s", a guest may use "%s": %s', async (filter, topic, isAllowed) => {
  const call = await connected({ publish: [filter] })
  expect(await codeOf(call({ topic }))).toBe(isAllowed ? undefined : 'NOT_ALLOWED')
})

test.each([
  ['no topic', {}, 'INVALID_REQUEST'],
  ['a topic with a wildcard', { topic: 'a/+' }, 'INVALID_REQUEST'],
  ['a topic with a control character', { topic: 'a/\u0001' }, 'INVALID_REQUEST'],
  ['a topic that is too long', { topic: 'a'.repeat(70_000) }, 'INVALID_REQUEST'],
  ['a QoS of 2', { topic: 'a', qos: 2 }, 'INVALID_REQUEST'],
  ['retain that is not a boolean', { topic: 'a', retain: 1 }, 'INVALID_REQUEST'],
  ['retain without permission', { topic: 'a', retain: true }, 'NOT_ALLOWED'],
  ['headers that are not an object', { topic: 'a', headers: [] }, 'INVALID_REQUEST'],
  ['headers that are not strings', { topic: 'a', headers: { a: 1 } }, 'INVALID_REQUEST'],
  ['headers with a null character', { topic: 'a', headers: { 'a\0': 'b' } }, 'INVALID_REQUEST'],
  ['headers that are too long', { topic: 'a', headers: { a: 'b'.repeat(40_000) } }, 'TOO_LARGE']
])('a guest cannot use %s, and the connection stays', async (_, request, code) => {
  const call = await connected({ publish: ['#'] })
  expect(await codeOf(call(request))).toBe(code)
  expect(await call({ topic: 'after', qos: 1 })).toEqual({})
  expect(client.connected).toBe(true)
})

test('a message has a limit', async () => {
  const call = await connected({ publish: ['#'], maxPayloadBytes: 10 })
  expect(await codeOf(call({ topic: 'a' }, 'x'.repeat(11)))).toBe('TOO_LARGE')
  expect(await call({ topic: 'a' }, 'x'.repeat(10))).toEqual({})
})

test('MQTT has no requests', async () => {
  const call = await connected({ publish: ['#'] })
  expect(await codeOf(call({ topic: 'a' }, '', 'request'))).toBe('UNSUPPORTED')
})

test('MQTT 3.1.1 has no headers', async () => {
  const old = await connectAsync(broker.url, { protocolVersion: 4 })
  try {
    const call = await connected({ publish: ['#'] }, { given: old })
    expect(await codeOf(call({ topic: 'a', headers: { a: 'b' } }))).toBe('UNSUPPORTED')
    expect(await call({ topic: 'a', qos: 1 })).toEqual({})
  } finally {
    await old.endAsync(true)
  }
})

test('a guest is told that the broker is lost, and goes on once it is back', async () => {
  const call = await connected({ publish: ['#'] })
  client.on('error', () => {})
  await broker.kill()
  await until(() => !client.connected)
  expect(await codeOf(call({ topic: 'a', qos: 1 }))).toBe('UNAVAILABLE')
  await broker.start()
  await until(() => client.connected)
  expect(await call({ topic: 'a', qos: 1 })).toEqual({})
})

test('a guest waits for a broker that does not answer, until its deadline', async () => {
  const silent = { connected: true, publish () {}, subscribe () {}, publishAsync: () => new Promise(() => {}) }
  const call = await connected({ publish: ['#'], timeoutMs: 50, maxUnacknowledged: 1 }, { given: silent })
  expect(await codeOf(call({ topic: 'a' }))).toBe('TIMEOUT')
  // The message is still on its way, and there may be one only.
  expect(await codeOf(call({ topic: 'a' }))).toBe('TIMEOUT')
  await expect(call({ topic: 'a' }, '', 'publish', { timeoutMs: 30 })).rejects.toThrow(expect.objectContaining({ code: 'TIMEOUT' }))
})

test.each([
  ['a client', undefined, {}],
  ['topics', null, { publish: ['a#'] }],
  ['topics in an array', null, { publish: 'a' }],
  ['known options', null, { other: 1 }]
])('mqtt needs %s', (_, given, options) => {
  expect(() => mqtt(given === null ? client : given, options)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
})
