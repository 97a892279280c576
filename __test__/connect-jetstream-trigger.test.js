'use strict'

const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { createConnection } = require('node:net')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { connect: openConnection, headers } = require('@nats-io/transport-node')
const { jetstream, jetstreamManager } = require('@nats-io/jetstream')
const { jetStreamTrigger } = require('../lib/connect.js')
const { guest } = require('./support/guest.js')
const { startNats } = require('./support/nats.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { TriggerChild, handledIn, pluginOf, recorder } = require('./support/triggers.js')
const { until } = require('./support/until.js')

jest.setTimeout(60_000)

const open = pluginsOfEachTest()

let directory
let wasm
let server
let connection
let client
let manager
let errors
let triggers
const onError = (error, origin) => errors.push([error.code, origin.subject])

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  wasm = await guest('message')
  writeFileSync(join(directory, 'message.wasm'), wasm)
  server = await startNats(['-js', '-sd', directory])
})
afterAll(async () => {
  await server.stop()
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

beforeEach(async () => {
  errors = []
  triggers = []
  connection = await openConnection({ servers: server.url, reconnectTimeWait: 20, maxReconnectAttempts: -1 })
  client = jetstream(connection)
  manager = await jetstreamManager(connection)
  await manager.streams.add({ name: 'ORDERS', subjects: ['orders.>'] })
  await manager.streams.add({ name: 'DEAD', subjects: ['dead.>'] })
})
afterEach(async () => {
  try {
    await Promise.all(triggers.map((trigger) => trigger.close()))
    await manager.streams.delete('ORDERS')
    await manager.streams.delete('DEAD')
  } finally {
    // A client that goes on connecting would keep Jest running.
    await connection.close()
  }
})

async function trigger (options) {
  const made = await jetStreamTrigger(connection, { stream: 'ORDERS', consumer: 'workers', function: 'echo', backoffMs: [10], onError, ...options })
  triggers.push(made)
  return made
}

/** Whether each message of the stream has been acknowledged. */
async function isAllAcknowledged () {
  const { num_pending: pending, num_ack_pending: unacknowledged } = await manager.consumers.info('ORDERS', 'workers')
  return pending === 0 && unacknowledged === 0
}

async function publish (count, subject = 'orders.new') {
  await Promise.all(Array.from({ length: count }, (_, index) => client.publish(subject, String(index))))
}

/** Publishes messages. Resolves once they are handled, to how many the trigger has held at the same time. */
async function publishAndWatch (orders, count) {
  let held = 0
  await publish(count)
  await until(() => {
    const { inFlight, pending, handled } = orders.stats()
    held = Math.max(held, inFlight + pending)
    return handled === count
  })
  return held
}

/** Publishes headers that no client would send. Resolves once the server has them. */
async function publishRaw (subject, head, payload) {
  const { hostname, port } = new URL(server.url)
  const socket = createConnection(port, hostname)
  socket.write(`CONNECT {"verbose":false,"headers":true}\r\nHPUB ${subject} ${head.length} ${head.length + payload.length}\r\n${head}${payload}\r\nPING\r\n`)
  await until(async () => String(socket.read() ?? '').includes('PONG'))
  socket.destroy()
}

test('a trigger calls the plugin with each message, and acknowledges it', async () => {
  const messages = []
  const plugin = await open(wasm)
  const orders = await trigger({ plugin: recorder(plugin, messages) })
  const sent = headers()
  sent.append('trace', 'abc')
  await client.publish('orders.new', 'tea\n5', { headers: sent })
  await until(isAllAcknowledged)
  expect(messages).toEqual(['{"subject":"orders.new","headers":{"trace":["abc"]},"stream":"ORDERS","sequence":1,"delivery":1}\ntea\n5'])
  expect(orders.stats()).toEqual({ received: 1, handled: 1, failed: 0, redelivered: 0, deadLettered: 0, dropped: 0, inFlight: 0, pending: 0 })
})

test('a stream may have quotes in its name', async () => {
  const messages = []
  await manager.streams.add({ name: '"QUOTED"', subjects: ['quoted'] })
  try {
    await trigger({ stream: '"QUOTED"', plugin: recorder(await open(wasm), messages) })
    await client.publish('quoted', 'tea')
    await until(() => messages.length === 1)
    expect(JSON.parse(messages[0].split('\n')[0])).toMatchObject({ stream: '"QUOTED"' })
  } finally {
    await Promise.all(triggers.splice(0).map((trigger) => trigger.close()))
    await manager.streams.delete('"QUOTED"')
  }
})

test('a trigger gets messages from before it was made, and only those of its subject', async () => {
  await publish(3, 'orders.old')
  await publish(2, 'orders.other')
  const orders = await trigger({ plugin: await open(wasm), subject: 'orders.old' })
  await until(isAllAcknowledged)
  expect(orders.stats()).toMatchObject({ received: 3, handled: 3 })
})

test('a message whose call fails is delivered again, after the pauses, until it succeeds', async () => {
  const times = []
  const plugin = pluginOf(({ delivery }) => {
    times.push(performance.now())
    if (delivery < 4) throw new Error('not yet')
  })
  const orders = await trigger({ plugin, backoffMs: [20, 200] })
  await publish(1)
  await until(isAllAcknowledged)
  expect(orders.stats()).toMatchObject({ received: 4, handled: 1, failed: 3, redelivered: 3, deadLettered: 0 })
  // The server counts whole milliseconds.
  expect(times[1] - times[0]).toBeGreaterThanOrEqual(19)
  expect(times[2] - times[1]).toBeGreaterThanOrEqual(199)
  expect(times[3] - times[2]).toBeGreaterThanOrEqual(199)
})

test('a message becomes a dead letter after its last delivery', async () => {
  const orders = await trigger({ plugin: await open(wasm), function: 'trap', deadLetterSubject: 'dead.orders', maxDeliver: 3 })
  const sent = headers()
  sent.append('trace', 'abc')
  sent.append('Nats-Msg-Id', '1')
  await client.publish('orders.new', 'tea', { headers: sent })
  await until(isAllAcknowledged)
  expect(orders.stats()).toMatchObject({ received: 3, handled: 0, failed: 3, redelivered: 2, deadLettered: 1 })
  expect(errors).toEqual(Array(3).fill(['TRAP', 'orders.new']))
  const letter = await manager.streams.getMessage('DEAD', { seq: 1 })
  expect(letter.string()).toBe('tea')
  expect(Object.fromEntries(letter.header.keys().map((name) => [name, letter.header.get(name)]))).toEqual({
    trace: 'abc',
    'Extism-Error': 'TRAP',
    'Extism-Subject': 'orders.new',
    'Extism-Stream': 'ORDERS',
    'Extism-Sequence': '1',
    'Extism-Deliveries': '3',
    'Nats-Msg-Id': expect.stringMatching(/^ORDERS:workers:1:\d+$/)
  })
})

test('a message as large as the server allows becomes a dead letter, too', async () => {
  const orders = await trigger({ plugin: await open(wasm), function: 'trap', deadLetterSubject: 'dead.orders', maxDeliver: 1 })
  await client.publish('orders.new', Buffer.alloc(connection.info.max_payload, 'x'))
  await until(isAllAcknowledged)
  expect(orders.stats()).toMatchObject({ failed: 1, deadLettered: 1 })
  expect((await manager.streams.getMessage('DEAD', { seq: 1 })).data).toHaveLength(connection.info.max_payload)
})

test('a message whose headers the client cannot read becomes a dead letter without them', async () => {
  const made = await trigger({ plugin: await open(wasm), maxDeliver: 2, deadLetterSubject: 'dead.orders' })
  await publishRaw('orders.new', 'NATS/1.0\r\na name with spaces: value\r\n\r\n', 'hostile')
  await publish(1)
  await until(async () => made.stats().handled === 1 && made.stats().deadLettered === 1 && await isAllAcknowledged())
  const stored = await manager.streams.getMessage('DEAD', { last_by_subj: 'dead.orders' })
  expect(stored.string()).toBe('hostile')
  expect(stored.header.get('Extism-Subject')).toBe('orders.new')
})

test('a stream that is made again has dead letters of its own', async () => {
  const orders = await trigger({ plugin: await open(wasm), function: 'trap', deadLetterSubject: 'dead.orders', maxDeliver: 1 })
  await publish(1)
  await until(isAllAcknowledged)
  await manager.streams.delete('ORDERS')
  await manager.streams.add({ name: 'ORDERS', subjects: ['orders.>'] })
  await publish(1)
  await until(() => isAllAcknowledged().catch(() => false))
  expect(orders.stats()).toMatchObject({ failed: 2, deadLettered: 2 })
  expect((await manager.streams.info('DEAD')).state.messages).toBe(2)
})

test('a trigger goes on after somebody has sent it headers that the client cannot read, as if from the server', async () => {
  const inboxes = []
  connection.subscribe('$JS.API.CONSUMER.MSG.NEXT.>', { callback: (_, message) => inboxes.push(message.reply) })
  const orders = await trigger({ plugin: await open(wasm) })
  await until(() => inboxes.length > 0)
  await publishRaw(inboxes[0], 'NATS/1.0\r\na name with spaces: value\r\n\r\n', 'hostile')
  await until(() => errors.length > 0)
  await publish(1)
  await until(isAllAcknowledged)
  expect(orders.stats().handled).toBe(1)
})

test('a message stays in the stream until its dead letter is stored', async () => {
  const orders = await trigger({ plugin: await open(wasm), function: 'trap', deadLetterSubject: 'dead.orders', maxDeliver: 1 })
  await manager.streams.delete('DEAD')
  await publish(1)
  await until(() => errors.length >= 4)
  expect(orders.stats().deadLettered).toBe(0)
  await manager.streams.add({ name: 'DEAD', subjects: ['dead.>'] })
  await until(isAllAcknowledged)
  expect(orders.stats().deadLettered).toBe(1)
  expect((await manager.streams.info('DEAD')).state.messages).toBe(1)
})

test('an error of the host, such as a closed plugin, makes no dead letters', async () => {
  const plugin = pluginOf(({ delivery }) => {
    if (delivery < 4) throw Object.assign(new Error(), { code: 'CLOSED' })
    if (delivery < 5) throw Object.assign(new Error(), { code: 'TRAP' })
  })
  const orders = await trigger({ plugin, deadLetterSubject: 'dead.orders', maxDeliver: 2 })
  await publish(1)
  await until(isAllAcknowledged)
  expect(orders.stats()).toMatchObject({ handled: 0, deadLettered: 1, failed: 4 })
})

test('a call may take longer than the server waits for an acknowledgement, and so may the wait for one', async () => {
  const plugin = pluginOf(() => new Promise((resolve) => setTimeout(resolve, 900)))
  const orders = await trigger({ plugin, ackWaitMs: 600, concurrency: 1 })
  await publish(2)
  await until(isAllAcknowledged)
  expect(orders.stats()).toMatchObject({ received: 2, handled: 2, redelivered: 0 })
})

test('so many calls run at the same time, and as many messages wait', async () => {
  let most = 0
  let running = 0
  const plugin = pluginOf(async () => {
    most = Math.max(most, ++running)
    await new Promise((resolve) => setTimeout(resolve, 5))
    running--
  })
  const orders = await trigger({ plugin, concurrency: 3 })
  const held = await publishAndWatch(orders, 50)
  expect(most).toBe(3)
  expect(held).toBeLessThanOrEqual(6)
})

test('no more messages wait after the connection was lost and made again, although the server still has the requests', async () => {
  const orders = await trigger({ plugin: pluginOf(() => sleep(20)), concurrency: 1 })
  for (let count = 0; count < 5; count++) {
    const statuses = connection.status()
    await connection.reconnect()
    for await (const { type } of statuses) if (type === 'reconnect') break
    await sleep(100)
  }
  const held = await publishAndWatch(orders, 20)
  expect(held).toBeLessThanOrEqual(2)
})

test('a trigger that is closed handles the messages that have come, and leaves the others to the next', async () => {
  const first = await trigger({ plugin: await open(wasm), concurrency: 1, ackWaitMs: 1_000 })
  await publish(100)
  await until(() => first.stats().handled > 3)
  await first.close()
  const { received, handled, inFlight, pending } = first.stats()
  expect({ handled, inFlight, pending }).toEqual({ handled: received, inFlight: 0, pending: 0 })
  const second = await trigger({ plugin: await open(wasm) })
  await until(isAllAcknowledged)
  expect(handled + second.stats().handled).toBeGreaterThanOrEqual(100)
})

test('a consumer may wait for an acknowledgement longer than a timer can', async () => {
  const signals = []
  connection.subscribe('$JS.ACK.>', { callback: (_, message) => signals.push(message.string()) })
  await manager.consumers.add('ORDERS', { durable_name: 'workers', ack_policy: 'explicit', ack_wait: 100 * 86_400 * 1e9 })
  await trigger({ plugin: pluginOf(() => sleep(100)) })
  await publish(1)
  await until(() => signals.includes('+ACK'))
  expect(signals).toEqual(['+ACK'])
})

test('a trigger can be closed after its connection', async () => {
  const other = await openConnection({ servers: server.url })
  const orders = await jetStreamTrigger(other, { stream: 'ORDERS', consumer: 'workers', plugin: await open(wasm), function: 'echo', onError })
  await orders.checkReady()
  await other.close()
  await expect(orders.checkReady()).rejects.toThrow()
  await orders.close()
})

test('a consumer that is deleted is made again', async () => {
  const orders = await trigger({ plugin: await open(wasm) })
  await publish(1)
  await until(isAllAcknowledged)
  await manager.consumers.delete('ORDERS', 'workers')
  await until(() => orders.checkReady().then(() => true, () => false))
  await publish(1)
  await until(isAllAcknowledged)
  expect(errors.length).toBeGreaterThan(0)
})

test('the end of a call acknowledges no message of a stream that was made again meanwhile', async () => {
  const calls = []
  const ends = new Map()
  const plugin = pluginOf((head, text) => {
    calls.push(text)
    if (calls.length < 3) return new Promise((resolve, reject) => ends.set(text, { resolve, reject }))
  })
  const orders = await trigger({ plugin })
  await client.publish('orders.new', 'tea')
  await until(() => calls.length === 1)
  await manager.streams.delete('ORDERS')
  await manager.streams.add({ name: 'ORDERS', subjects: ['orders.>'] })
  await client.publish('orders.new', 'coffee')
  await until(() => calls.length === 2)
  ends.get('tea').resolve()
  await until(() => orders.stats().handled === 1)
  await connection.flush()
  ends.get('coffee').reject(new Error('not yet'))
  await until(() => calls.length === 3)
  expect(calls).toEqual(['tea', 'coffee', 'coffee'])
  await until(isAllAcknowledged)
})

test('a call may take as long if the consumer is made again with less time for an acknowledgement', async () => {
  await manager.consumers.add('ORDERS', { durable_name: 'workers', ack_policy: 'explicit', ack_wait: 60 * 1e9 })
  const orders = await trigger({ plugin: pluginOf(() => sleep(900)), ackWaitMs: 600 })
  await manager.consumers.delete('ORDERS', 'workers')
  await publish(1)
  await until(() => isAllAcknowledged().catch(() => false))
  expect(orders.stats()).toMatchObject({ received: 1, handled: 1, redelivered: 0 })
})

describe('each message is handled at least once', () => {
  test('if the server is killed and started again, and each third call traps', async () => {
    const handled = new Set()
    let duplicates = 0
    const plugin = await open(wasm, { instances: 2 })
    const recording = {
      async call (...args) {
        await plugin.call(...args)
        const text = Buffer.from(args[1]).toString().split('\n')[1]
        if (handled.has(text)) duplicates++
        handled.add(text)
        await new Promise((resolve) => setTimeout(resolve, 1))
      }
    }
    await publish(600)
    const orders = await trigger({ plugin: recording, function: 'unreliable', ackWaitMs: 1_000, concurrency: 8 })
    for (const count of [100, 200, 300]) {
      await until(() => handled.size >= count)
      await server.stop()
      await server.start()
    }
    await until(() => isAllAcknowledged().catch(() => false))
    expect(handled.size).toBe(600)
    const { handled: succeeded, failed, redelivered } = orders.stats()
    expect(succeeded).toBe(600 + duplicates)
    expect(failed).toBeGreaterThan(100)
    expect(redelivered).toBeGreaterThan(100)
  })

  test('if the process is killed again and again, and each third call traps', async () => {
    const file = join(directory, 'handled.txt')
    await publish(600)
    const child = new TriggerChild('jetStream', server.url, join(directory, 'message.wasm'), file)
    try {
      for (let kills = 1; kills <= 4; kills++) {
        child.start()
        await until(() => handledIn(file).length >= kills * 100)
        await child.kill()
      }
      child.start()
      await until(isAllAcknowledged)
    } finally {
      await child.kill()
    }
    const handled = handledIn(file)
    expect(new Set(handled).size).toBe(600)
    expect(handled.length).toBeLessThan(600 + 4 * 20)
  })
})

describe('a trigger refuses', () => {
  const plugin = pluginOf(() => {})
  test.each([
    ['options that it does not know', { other: 1 }, /has no "other"/],
    ['a stream that is not a name', { stream: 'A.B' }, /stream must be/],
    ['a consumer that is not a name', { consumer: undefined }, /consumer must be/],
    ['a subject that is not one', { subject: 'a..b' }, /subject must be/],
    ['maxDeliver without a subject of dead letters', { maxDeliver: 3 }, /maxDeliver needs deadLetterSubject/],
    ['a subject of dead letters that no stream stores', { deadLetterSubject: 'nowhere' }, /no stream stores/],
    ['a subject of dead letters that it receives itself', { deadLetterSubject: 'orders.dead' }, /one of the trigger's own/],
    ['no pauses', { backoffMs: [] }, /backoffMs must be/],
    ['pauses that are not numbers', { backoffMs: ['1s'] }, /each of backoffMs/]
  ])('%s', async (_, options, message) => {
    await expect(trigger({ plugin, ...options })).rejects.toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) }))
  })

  test('what is not a connection', async () => {
    await expect(jetStreamTrigger({}, {})).rejects.toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })

  test('a stream that does not exist', async () => {
    await expect(trigger({ plugin, stream: 'MISSING' })).rejects.toThrow('stream not found')
  })

  test.each([
    ['drops messages after some deliveries', { ack_policy: 'explicit', max_deliver: 3 }, /max_deliver 3/],
    ['needs no acknowledgements', { ack_policy: 'none' }, /ack policy "none"/],
    ['pushes messages', { ack_policy: 'explicit', deliver_subject: 'here' }, /push consumer/],
    ['gives fewer messages for a request than the trigger asks for', { ack_policy: 'explicit', max_batch: 31 }, /max_batch 31/],
    ['ends requests sooner than the trigger does', { ack_policy: 'explicit', max_expires: 20 * 1e9 }, /max_expires of less than 30000 ms/],
    ['filters another subject', { ack_policy: 'explicit', filter_subject: 'orders.old' }, /filters "orders.old"/]
  ])('a consumer that %s', async (_, config, message) => {
    await manager.consumers.add('ORDERS', { durable_name: 'workers', ...config })
    await expect(trigger({ plugin, subject: 'orders.*' })).rejects.toThrow(message)
  })
})
