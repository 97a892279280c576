'use strict'

const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const Fastify = require('fastify')
const { connectAsync } = require('mqtt')
const { connect: openConnection } = require('@nats-io/transport-node')
const { jetstream, jetstreamManager } = require('@nats-io/jetstream')
const extismHost = require('extism-host/fastify')
const { assemble, guest } = require('./support/guest.js')
const { startMosquitto } = require('./support/mosquitto.js')
const { startNats } = require('./support/nats.js')
const { startServer } = require('./support/processes.js')
const { until } = require('./support/until.js')

jest.setTimeout(60_000)

let directory
let echo
let nats
let mosquitto
let connection
let manager
let app

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  echo = await guest('message')
  writeFileSync(join(directory, 'echo.wasm'), echo)
  nats = await startNats(['-js', '-sd', directory])
  mosquitto = await startMosquitto()
})
afterAll(async () => {
  await nats.stop()
  await mosquitto.stop()
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

beforeEach(async () => {
  connection = await openConnection({ servers: nats.url, reconnectTimeWait: 20, maxReconnectAttempts: -1 })
  manager = await jetstreamManager(connection)
  await manager.streams.add({ name: 'ORDERS', subjects: ['orders.>'] })
})
afterEach(async () => {
  await app?.close()
  app = undefined
  try {
    await manager.streams.delete('ORDERS')
  } finally {
    // A client that goes on connecting would keep Jest running.
    await connection.close()
  }
})

const brokers = () => ({ events: { nats: nats.url, reconnectTimeWait: 20 }, sensors: { mqtt: mosquitto.url } })

const TRIGGERS = [
  { nats: 'greet.*', queue: 'workers', plugin: 'echo', function: 'echo' },
  { jetStream: 'orders.*', stream: 'ORDERS', consumer: 'workers', ackWaitMs: 1_000, backoffMs: [10], plugin: 'echo', function: 'unreliable' },
  { mqtt: 'sensors/+', clientId: 'app', plugin: 'echo', function: 'silent' }
]

function build (options) {
  app = Fastify()
  app.register(extismHost, { plugins: { echo }, connections: brokers(), triggers: TRIGGERS, ...options })
  return app.ready()
}

async function publishAll () {
  const client = await connectAsync(mosquitto.url)
  await client.publishAsync('sensors/1', '21.5', { qos: 1 })
  await client.endAsync()
  for (let count = 0; count < 4; count++) await jetstream(connection).publish('orders.new', `${count}`)
  return (await connection.request('greet.jane', 'Hello', { timeout: 10_000 })).string()
}

const outcome = (text, trigger, functionName, outcome) =>
  Number(new RegExp(`^extism_trigger_messages_total\\{trigger="${trigger}",plugin="echo",function="${functionName}",outcome="${outcome}"\\} (\\d+)$`, 'm').exec(text)?.[1])

/** Waits until the metrics show that all messages are handled. */
async function expectAllHandled (metrics) {
  const show = async () => {
    const text = await metrics()
    return [outcome(text, 'greet\\.\\*', 'echo', 'handled'), outcome(text, 'orders\\.\\*', 'unreliable', 'handled'), outcome(text, 'sensors/\\+', 'silent', 'handled')].join()
  }
  await until(async () => await show() === '1,4,1')
  const text = await metrics()
  expect(outcome(text, 'orders\\.\\*', 'unreliable', 'failed')).toBeGreaterThan(0)
  expect(outcome(text, 'orders\\.\\*', 'unreliable', 'redelivered')).toBeGreaterThan(0)
  for (const gauge of ['in_flight', 'pending']) expect(text).toMatch(`extism_trigger_${gauge}_messages{trigger="greet.*",plugin="echo",function="echo"} 0`)
}

test('an app calls its plugins for messages, and shows that in its metrics', async () => {
  await build({ metrics: true })
  expect(await publishAll()).toBe('{"subject":"greet.jane","headers":{}}\nHello')
  await expectAllHandled(async () => (await app.inject('/metrics')).body)
})

test('serve does so from YAML', async () => {
  writeFileSync(join(directory, 'config.yaml'), `
server: { port: 0, drainMs: 0 }
plugins:
  echo: { wasm: echo.wasm }
connections:
  events: { nats: '${nats.url}' }
  sensors: { mqtt: '${mosquitto.url}' }
triggers:
  - { nats: greet.*, queue: workers, plugin: echo, function: echo }
  - { jetStream: orders.*, stream: ORDERS, consumer: workers, backoffMs: [10], plugin: echo, function: unreliable }
  - { mqtt: sensors/+, connection: sensors, clientId: yaml, plugin: echo, function: silent }
health: true
metrics: true
`)
  const { child, ended, url } = await startServer({}, ['bin/extism-host.js', 'serve', '--config', join(directory, 'config.yaml')])
  try {
    expect(await (await fetch(`${url}/health/ready`)).json()).toEqual({ status: 'ok', plugins: 'ok', store: 'ok', triggers: 'ok' })
    expect(await publishAll()).toBe('{"subject":"greet.jane","headers":{}}\nHello')
    await expectAllHandled(async () => (await fetch(`${url}/metrics`)).text())
  } finally {
    child.kill()
  }
  expect(await ended).toEqual({ code: 0, signal: null })
})

test('an app is ready only while the brokers of its triggers are there', async () => {
  await build({ health: true, triggers: TRIGGERS.slice(1) })
  const ready = async () => (await app.inject('/health/ready')).json()
  expect(await ready()).toEqual({ status: 'ok', plugins: 'ok', store: 'ok', triggers: 'ok' })
  await mosquitto.kill()
  await until(async () => (await ready()).triggers === 'unavailable')
  await mosquitto.start()
  await until(async () => (await ready()).triggers === 'ok')
  await nats.stop()
  await until(async () => (await ready()).triggers === 'unavailable')
  await nats.start()
  await until(async () => (await ready()).triggers === 'ok')
  // A request on the test's own connection may be lost until JetStream has started, too.
  await until(() => manager.streams.info('ORDERS').then(() => true, () => false))
})

test('a trigger calls the version of a plugin that serves', async () => {
  const file = join(directory, 'reloaded.wasm')
  const answering = (text) => assemble(`(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (func (export "echo") (local $block i64)
      (local.set $block (call $alloc (i64.const 1)))
      (call $store (local.get $block) (i32.const ${text.charCodeAt(0)}))
      (call $output (local.get $block) (i64.const 1))))`)
  writeFileSync(file, await answering('1'))
  await build({ plugins: { echo: file }, triggers: [TRIGGERS[0]] })
  expect(await publishOne()).toBe('1')
  writeFileSync(file, await answering('2'))
  await app.extism.reload('echo')
  expect(await publishOne()).toBe('2')
})

const publishOne = async () => (await connection.request('greet.jane', 'Hello', { timeout: 10_000 })).string()

test('closing the app finishes the calls of messages, and leaves a connection open that the app was given', async () => {
  await build({ connections: { events: connection }, triggers: [TRIGGERS[0]] })
  const answers = Array.from({ length: 50 }, publishOne)
  await connection.flush()
  await app.close()
  expect(await Promise.all(answers)).toHaveLength(50)
  await expect(publishOne()).rejects.toThrow('no responders')
})

test('closing the app interrupts calls that do not end, whose messages are delivered again', async () => {
  await build({ closeTimeoutMs: 50, connections: { events: connection }, triggers: [{ ...TRIGGERS[1], function: 'endless' }] })
  await jetstream(connection).publish('orders.new', 'x')
  while (app.extism.plugin('echo').stats().busy === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  await app.close()
  await build({ metrics: true, connections: { events: connection }, triggers: [{ ...TRIGGERS[1], function: 'silent' }] })
  await until(async () => outcome((await app.inject('/metrics')).body, 'orders\\.\\*', 'silent', 'handled') === 1)
})

describe('an app refuses', () => {
  const one = TRIGGERS[0]
  test.each([
    ['triggers that are not an array', { triggers: {} }, /triggers must be an array/],
    ['a trigger without a source', { triggers: [{ plugin: 'echo', function: 'echo' }] }, /triggers\[0\] must have one of nats, jetStream, mqtt/],
    ['a trigger of an unknown plugin', { triggers: [{ ...one, plugin: 'other' }] }, /names plugin "other", but there are only "echo"/],
    ['a trigger without a function', { triggers: [{ ...one, function: undefined }] }, /function must be/],
    ['a function that the plugin does not have', { triggers: [{ ...one, function: 'missing' }] }, /it has no function "missing"/],
    ['an unknown connection', { triggers: [{ ...one, connection: 'other' }] }, /connection must name a connection to nats.*there are "events"/],
    ['a connection to another broker', { triggers: [{ ...one, connection: 'sensors' }] }, /connection must name a connection to nats/],
    ['a trigger without any connection', { connections: {} }, /there is none/],
    ['connections that are not an object', { connections: [] }, /connections must be an object/],
    ['a connection to nowhere', { connections: { events: {} } }, /the connection "events" must be/],
    ['options that the trigger does not have', { triggers: [{ ...one, stream: 'ORDERS' }] }, /triggers\[0\], nats "greet\.\*": the options of natsTrigger has no "stream"/]
  ])('%s', async (_, options, message) => {
    await expect(build(options)).rejects.toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) }))
  })

  test('a server of NATS that does not run', async () => {
    await expect(build({ connections: { events: { nats: 'nats://127.0.0.1:1' } }, triggers: [one] })).rejects.toThrow(/the connection "events"/)
  })
})
