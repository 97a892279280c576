'use strict'

// Connections of an app that its plugins may use: `connect` of a plugin.

const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const Fastify = require('fastify')
const { connectAsync } = require('mqtt')
const { connect: openConnection } = require('@nats-io/transport-node')
const { Pool } = require('pg')
const extismHost = require('extism-host/fastify')
const { guest } = require('./support/guest.js')
const { startMosquitto } = require('./support/mosquitto.js')
const { startNats } = require('./support/nats.js')
const { startPostgres } = require('./support/postgres.js')
const { startServer } = require('./support/processes.js')
const { startRedis } = require('./support/redis.js')
const { until } = require('./support/until.js')

jest.setTimeout(120_000)

let directory
let wasm
let nats
let mosquitto
let database
let admin
let connection
let app

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  wasm = await guest('connected')
  writeFileSync(join(directory, 'connected.wasm'), wasm)
  ;[nats, mosquitto, database] = await Promise.all([startNats(), startMosquitto(), startPostgres()])
  connection = await openConnection({ servers: nats.url, reconnectTimeWait: 20, maxReconnectAttempts: -1 })
  connection.subscribe('stock.*', { callback: (error, message) => message.respond(error?.message ?? '12') })
  await connection.flush()
  admin = new Pool({ connectionString: database.url })
  admin.on('error', () => {})
  await admin.query("CREATE TABLE products (id int PRIMARY KEY, name text); INSERT INTO products VALUES (1, 'tea')")
})
afterAll(async () => {
  await connection.close()
  await admin.end()
  await Promise.all([nats, mosquitto, database].map((server) => server.stop()))
  rmSync(directory, { recursive: true, maxRetries: 10 })
})
afterEach(async () => {
  await app?.close()
  app = undefined
})

const connections = () => ({
  broker: { nats: nats.url, reconnectTimeWait: 20 },
  sensors: { mqtt: mosquitto.url, reconnectPeriod: 20 },
  database: { postgres: database.url, max: 3, application_name: 'guests' }
})

const STATEMENTS = {
  productById: 'SELECT name FROM products WHERE id = $1',
  add: 'INSERT INTO products VALUES ($1, $2)',
  wait: 'SELECT pg_sleep(60)'
}

const CONNECT = {
  events: { connection: 'broker', publish: ['orders.*'], request: ['stock.*'] },
  sensors: { publish: ['sensors/+'], retain: ['sensors/+'], maxUnacknowledged: 10 },
  db: { connection: 'database', statements: STATEMENTS, readOnly: true, maxRows: 10, maxBytes: 1_000, timeoutMs: 20_000 }
}

async function build (options, connect = CONNECT) {
  app = Fastify()
  app.register(extismHost, { plugins: { orders: { source: wasm, connect } }, connections: connections(), ...options })
  await app.ready()
}

async function call (operation, request, payload = '') {
  const output = await app.extism.plugin('orders').call(operation, `${JSON.stringify(request)}\n${payload}`)
  const [head, ...rest] = output.text().split('\n')
  return { ...JSON.parse(head), ...(rest.length > 0 && { payload: rest.join('\n') }) }
}

const query = (statement, ...params) => call('query', { connection: 'db', statement, params })
const withCode = (code) => ({ error: expect.objectContaining({ code }) })
const ready = async () => (await app.inject('/health/ready')).json()

/** The connections of guests to the database. */
const guestConnections = async () =>
  (await admin.query("SELECT pid, query FROM pg_stat_activity WHERE application_name = 'guests'")).rows

test('a plugin uses the brokers and the database of its app', async () => {
  await build()
  const messages = connection.subscribe('orders.*', { max: 1 })
  await connection.flush()
  expect(await call('publish', { connection: 'events', subject: 'orders.new' }, 'tea')).toEqual({})
  for await (const message of messages) expect(message.string()).toBe('tea')
  expect(await call('request', { connection: 'events', subject: 'stock.1' })).toEqual({ headers: {}, payload: '12' })
  expect(await query('productById', 1)).toEqual({ rows: [{ name: 'tea' }] })

  expect(await call('publish', { connection: 'sensors', topic: 'sensors/1', qos: 1, retain: true, headers: { unit: 'C' } }, '21.5')).toEqual({})
  const client = await connectAsync(mosquitto.url)
  const retained = new Promise((resolve) => client.once('message', (topic, message) => resolve(`${topic}: ${message}`)))
  await client.subscribeAsync('sensors/1')
  expect(await retained).toBe('sensors/1: 21.5')
  await client.endAsync()
})

test('what a plugin is not allowed by name is refused', async () => {
  await build({}, { ...CONNECT, quiet: { connection: 'broker' }, silent: { connection: 'sensors' } })
  expect(await call('publish', { connection: 'events', subject: 'invoices.new' })).toEqual(withCode('NOT_ALLOWED'))
  expect(await call('request', { connection: 'events', subject: 'orders.new' })).toEqual(withCode('NOT_ALLOWED'))
  expect(await call('publish', { connection: 'quiet', subject: 'orders.new' })).toEqual(withCode('NOT_ALLOWED'))
  expect(await call('publish', { connection: 'silent', topic: 'sensors/1' })).toEqual(withCode('NOT_ALLOWED'))
  // The name in `connections` is not the plugin's.
  expect(await call('publish', { connection: 'broker', subject: 'orders.new' })).toEqual(withCode('UNKNOWN_CONNECTION'))
  expect(await query('other')).toEqual(withCode('NOT_ALLOWED'))
  expect(await call('query', { connection: 'db', sql: 'SELECT 1' })).toEqual(withCode('NOT_ALLOWED'))
  expect(await query('add', 2, 'milk')).toEqual(withCode('NOT_ALLOWED'))
  expect((await admin.query('SELECT * FROM products')).rowCount).toBe(1)
})

test('functions of a plugin\'s own stand beside those of its connections', async () => {
  const functions = { 'extism:host/user': { hostPublish: () => 'own' } }
  await build({ plugins: { orders: { source: wasm, functions, connect: CONNECT } } })
  const publish = await app.extism.plugin('orders').call('publish', '{}')
  expect(publish.text()).toBe('own')
  expect(await query('productById', 1)).toEqual({ rows: [{ name: 'tea' }] })
})

test('connections serve on after brokers and the database were restarted, and the app is ready only while they are there', async () => {
  await build({ health: true })
  expect(await ready()).toEqual({ status: 'ok', plugins: 'ok', store: 'ok', connections: 'ok' })
  for (const [server, stop, request] of [
    [nats, () => nats.stop(), () => call('request', { connection: 'events', subject: 'stock.1' })],
    [mosquitto, () => mosquitto.kill(), () => call('publish', { connection: 'sensors', topic: 'sensors/1', qos: 1 })],
    [database, () => database.kill(), () => query('productById', 1)]
  ]) {
    await stop()
    await until(async () => (await ready()).connections === 'unavailable')
    await server.start()
    await until(async () => (await ready()).connections === 'ok')
    await until(async () => (await request()).error === undefined)
  }
})

test('a plugin of slingshot uses the Redis of its app', async () => {
  const redis = await startRedis()
  try {
    const connect = { nats: { connection: 'broker' }, redisDb: { connection: 'cache', read: ['news:*'], write: ['news:*'] } }
    await build({ plugins: { orders: { source: await guest('slingshot'), connect } }, connections: { ...connections(), cache: { redis: redis.url } }, health: true })
    const run = async (name, request) => (await app.extism.plugin('orders').call(name, JSON.stringify({ id: 'redisDb', ...request }))).json()
    expect(await run('hostRedisSet', { key: 'news:last', value: 'tea' })).toEqual({ success: 'news:last', failure: '' })
    expect(await run('hostRedisGet', { key: 'news:last' })).toEqual({ success: 'tea', failure: '' })
    expect((await run('hostRedisGet', { key: 'users:1' })).failure).toMatch(/^NOT_ALLOWED/)
    expect(await ready()).toMatchObject({ connections: 'ok' })
    await redis.stop()
    await until(async () => (await ready()).connections === 'unavailable')
    await app.close()
  } finally {
    await redis.stop()
  }
})

test('a reloaded plugin, and one that is added later, have the same connections', async () => {
  await build()
  await app.extism.reload('orders')
  expect(await query('productById', 1)).toEqual({ rows: [{ name: 'tea' }] })
  await app.extism.update({ added: { source: wasm, connect: { database: { statements: STATEMENTS } } } })
  const output = await app.extism.plugin('added').call('query', '{"connection":"database","statement":"productById","params":[1]}')
  expect(output.json()).toEqual({ rows: [{ name: 'tea' }] })
  expect((await guestConnections()).length).toBeLessThanOrEqual(3)
  await expect(app.extism.update({ added: { source: wasm, connect: { other: {} } } })).rejects.toThrow(/connect\.other needs "other"/)
})

test('all plugins of a pool leave one connection free to cancel statements', async () => {
  const plugin = { source: wasm, instances: 2, connect: CONNECT }
  await build({ plugins: { orders: plugin, others: plugin }, health: true })
  const running = async () => (await guestConnections()).filter(({ query }) => query.includes('pg_sleep')).length
  const sleep = (name, options) => app.extism.plugin(name).call('query', '{"connection":"db","statement":"wait"}', undefined, options)
    .catch((error) => error.code)
  const ending = new AbortController()
  const all = ['orders', 'orders', 'others', 'others'].map((name) => sleep(name, { signal: ending.signal }))
  await until(async () => await running() >= 2 && ['orders', 'others'].every((name) => app.extism.plugin(name).stats().busy === 2))
  expect((await ready()).connections).toBe('ok')
  expect(await running()).toBe(2)
  ending.abort()
  await Promise.all(all)
  await until(async () => await running() === 0)
})

test('closing the app closes the connections that it has opened, and those only', async () => {
  const pool = new Pool({ connectionString: database.url })
  await build({ connections: { ...connections(), broker: connection, database: pool } })
  expect(await query('productById', 1)).toEqual({ rows: [{ name: 'tea' }] })
  await app.close()
  expect((await connection.request('stock.1')).string()).toBe('12')
  expect((await pool.query('SELECT 1')).rowCount).toBe(1)
  await pool.end()
  await build()
  expect(await guestConnections()).not.toHaveLength(0)
  await app.close()
  await until(async () => (await guestConnections()).length === 0)
})

test('the last messages of a plugin are sent before its app is closed', async () => {
  await build()
  const messages = connection.subscribe('orders.*', { max: 100 })
  await connection.flush()
  for (let count = 0; count < 100; count++) await call('publish', { connection: 'events', subject: 'orders.new' }, `${count}`)
  await app.close()
  const received = []
  for await (const message of messages) received.push(message.string())
  expect(received).toHaveLength(100)
})

test('serve gives a plugin the connections of a configuration', async () => {
  writeFileSync(join(directory, 'config.yaml'), `
server: { port: 0, drainMs: 0 }
connections:
  broker: { nats: '${nats.url}' }
  database: { postgres: '\${DATABASE_URL}', max: 4 }
plugins:
  orders:
    wasm: connected.wasm
    timeoutMs: 30000
    connect:
      events: { connection: broker, publish: [orders.*] }
      db:
        connection: database
        statements: { productById: SELECT name FROM products WHERE id = $1 }
        readOnly: true
routes:
  - { url: /query, plugin: orders, function: query }
  - { url: /publish, plugin: orders, function: publish }
health: true
`)
  const { child, ended, url } = await startServer({ DATABASE_URL: `${database.url}?application_name=guests` }, ['bin/extism-host.js', 'serve', '--config', join(directory, 'config.yaml')])
  try {
    const post = async (path, body) => (await fetch(url + path, { method: 'POST', body: JSON.stringify(body) })).json()
    expect(await (await fetch(`${url}/health/ready`)).json()).toEqual({ status: 'ok', plugins: 'ok', store: 'ok', connections: 'ok' })
    expect(await post('/query', { connection: 'db', statement: 'productById', params: [1] })).toEqual({ rows: [{ name: 'tea' }] })
    expect(await post('/publish', { connection: 'events', subject: 'orders.new' })).toEqual({})
    expect(await post('/publish', { connection: 'events', subject: 'invoices.new' })).toEqual(withCode('NOT_ALLOWED'))
  } finally {
    child.kill()
  }
  expect(await ended).toEqual({ code: 0, signal: null })
  await until(async () => (await guestConnections()).length === 0)
})

describe('an app refuses', () => {
  test.each([
    ['permissions that are not an object', ['events'], /connect must be an object of permissions/],
    ['permissions of a connection that are not an object', { events: 'broker' }, /connect\.events must be an object/],
    ['a connection that it does not have', { events: { connection: 'other' } }, /connect\.events needs "other" in the option "connections"; there are "broker", "sensors", "database"/],
    ['a permission of another kind of connection', { broker: { statements: {} } }, /connect\.broker: the options of nats has no "statements"/],
    ['subjects that are not an array', { broker: { publish: 'orders.*' } }, /connect\.broker: publish must be/],
    ['a database without statements', { database: {} }, /connect\.database: .*statements/]
  ])('%s', async (_, connect, message) => {
    await expect(build({}, connect)).rejects.toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) }))
  })

  test.each([
    ['NATS', { nats: 'nats://127.0.0.1:1' }],
    ['MQTT', { mqtt: 'mqtt://127.0.0.1:1' }],
    ['PostgreSQL', { postgres: 'postgresql://127.0.0.1:1/none' }],
    ['Redis', { redis: 'redis://127.0.0.1:1' }]
  ])('a server of %s that does not run', async (_, address) => {
    await expect(build({ connections: { broker: address } }, { broker: { ...(address.postgres && { statements: {} }) } })).rejects.toThrow(/plugin "orders": the connection "broker": ./)
  })
})
