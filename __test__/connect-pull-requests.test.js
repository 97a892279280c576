'use strict'

const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { connect: openConnection } = require('@nats-io/transport-node')
const { jetstream, jetstreamManager } = require('@nats-io/jetstream')
const { PullRequests } = require('../packages/connect/lib/pull-requests.js')
const { startNats } = require('./support/nats.js')
const { until } = require('./support/until.js')

jest.setTimeout(60_000)

let directory
let server
let connection
let client
let requests
let received
let ends
let failures

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  server = await startNats(['-js', '-sd', directory])
})
afterAll(async () => {
  await server.stop()
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

beforeEach(async () => {
  received = []
  ends = 0
  failures = []
  connection = await openConnection({ servers: server.url, reconnectTimeWait: 20, maxReconnectAttempts: -1 })
  client = jetstream(connection)
  const manager = await jetstreamManager(connection)
  await manager.streams.add({ name: 'ORDERS', subjects: ['orders.>'] })
  await manager.consumers.add('ORDERS', { durable_name: 'workers', ack_policy: 'explicit' })
  requests = new PullRequests(connection, '$JS.API.CONSUMER.MSG.NEXT.ORDERS.workers', {
    onMessage: (message) => received.push(message.string()),
    onEnd: () => ends++,
    onFailure: (error) => failures.push(error),
    expiresMs: 1_000,
    heartbeatMs: 200
  })
})
afterEach(async () => {
  await requests.close()
  await (await jetstreamManager(connection)).streams.delete('ORDERS')
  await connection.close()
})

test('messages come until all that were requested are there', async () => {
  requests.request(3)
  for (let number = 0; number < 5; number++) await client.publish('orders.new', String(number))
  await until(() => received.length === 3)
  expect(requests.pending).toBe(0)
  requests.request(2)
  await until(() => received.length === 5)
  expect(received).toEqual(['0', '1', '2', '3', '4'])
  expect({ ends, failures }).toEqual({ ends: 0, failures: [] })
})

test('a request ends when no message has come for a time, and those that came stay counted', async () => {
  requests.request(3)
  await client.publish('orders.new', 'tea')
  await until(() => ends === 1)
  expect({ received, failures, pending: requests.pending }).toEqual({ received: ['tea'], failures: [], pending: 0 })
})

test('of two requests, the one that ends leaves the other', async () => {
  requests.request(3)
  await new Promise((resolve) => setTimeout(resolve, 500))
  requests.request(2)
  await until(() => ends === 1)
  expect(requests.pending).toBe(2)
  await until(() => ends === 2)
  expect(requests.pending).toBe(0)
})

test('a server that falls silent is a failure', async () => {
  requests.request(1)
  server.freeze()
  try {
    await until(() => failures.length > 0)
  } finally {
    server.unfreeze()
  }
  expect(failures[0]).toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining('neither messages nor heartbeats') })
})

test('no silence is a failure if nothing is requested', async () => {
  server.freeze()
  await new Promise((resolve) => setTimeout(resolve, 800))
  server.unfreeze()
  expect(failures).toEqual([])
})

test('a reconnection tells that requests may be lost', async () => {
  requests.request(1)
  await server.stop()
  await server.start()
  await until(() => failures.includes(undefined))
  await requests.restart()
  requests.request(1)
  await client.publish('orders.new', 'tea')
  await until(() => received.length === 1)
})

test('requests from before a restart give no messages, and do not count', async () => {
  requests.request(3)
  await client.publish('orders.new', 'tea')
  await until(() => received.length === 1)
  await requests.restart()
  expect(requests.pending).toBe(0)
  requests.request(1)
  for (const name of ['coffee', 'milk', 'water']) await client.publish('orders.new', name)
  await until(() => received.length === 2)
  await connection.flush()
  await new Promise((resolve) => setTimeout(resolve, 100))
  expect({ received, ends, failures, pending: requests.pending }).toEqual({ received: ['tea', 'coffee'], ends: 0, failures: [], pending: 0 })
})

test('a consumer that is deleted meanwhile is a failure', async () => {
  requests.request(1)
  await (await jetstreamManager(connection)).consumers.delete('ORDERS', 'workers')
  await until(() => failures.length > 0)
  expect(failures[0]).toMatchObject({ code: 'UNAVAILABLE', message: expect.stringMatching(/^JetStream refuses to send messages: 409/) })
})

test.each([
  ['publish', '"any"'],
  ['subscription', '"_INBOX.>"']
])('a %s that the server forbids is a failure, each time', async (operation, subject) => {
  const config = join(directory, 'permissions.conf')
  const permissions = operation === 'publish' ? `publish: { deny: ${subject} }` : `subscribe: { deny: ${subject} }`
  writeFileSync(config, `authorization { users: [{ user: jane, password: x, permissions: { ${permissions} } }] }`)
  const guarded = await startNats(['-c', config])
  const other = await openConnection({ servers: guarded.url, user: 'jane', pass: 'x' })
  try {
    const errors = []
    const ofOther = new PullRequests(other, 'any', { onFailure: (error) => errors.push(error.operation) })
    ofOther.request(1)
    await until(() => errors.length === 1)
    await ofOther.restart()
    ofOther.request(1)
    await until(() => errors.length === 2)
    expect(errors).toEqual([operation, operation])
  } finally {
    await other.close()
    await guarded.stop()
  }
})

test('a connection that is closed is a failure', async () => {
  const other = await openConnection({ servers: server.url })
  const errors = []
  const ofOther = new PullRequests(other, 'any', { onFailure: (error) => errors.push(error.constructor.name) })
  await other.close()
  ofOther.request(1)
  expect(errors).toEqual(['ClosedConnectionError'])
  await expect(ofOther.close()).rejects.toThrow()
})
