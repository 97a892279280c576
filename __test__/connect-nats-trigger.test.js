'use strict'

const { setTimeout: sleep } = require('node:timers/promises')
const { connect: openConnection, headers } = require('@nats-io/transport-node')
const { natsTrigger } = require('../lib/connect.js')
const { guest } = require('./support/guest.js')
const { startNats } = require('./support/nats.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { until } = require('./support/until.js')

const open = pluginsOfEachTest()

let wasm
let server
let connection
let errors
const onError = (error, origin) => errors.push([error.code, origin.subject])

beforeAll(async () => {
  wasm = await guest('message')
  server = await startNats()
})
afterAll(() => server.stop())

beforeEach(async () => {
  errors = []
  connection = await openConnection({ servers: server.url, reconnectTimeWait: 20, maxReconnectAttempts: -1 })
})
afterEach(() => connection.close())

/** A trigger that the server knows. */
async function trigger (options) {
  const made = natsTrigger(connection, { subject: 'orders.>', function: 'echo', onError, ...options })
  await connection.flush()
  return made
}

/** The answer to a request: what the guest got, or the error. */
async function request (subject, payload, requestHeaders) {
  const answer = await connection.request(subject, payload, { timeout: 10_000, headers: requestHeaders })
  if (answer.headers?.has('Nats-Service-Error')) return [answer.headers.get('Nats-Service-Error-Code'), answer.headers.get('Nats-Service-Error')]
  return answer.string()
}

describe('a trigger', () => {
  test('calls the plugin with the message, and answers with its output', async () => {
    const orders = await trigger({ plugin: await open(wasm) })
    const sent = headers()
    sent.append('trace', 'abc')
    expect(await request('orders.new', 'tea\n5', sent)).toBe('{"subject":"orders.new","headers":{"trace":["abc"]}}\ntea\n5')
    expect(await request('orders.a.b')).toBe('{"subject":"orders.a.b","headers":{}}\n')
    connection.publish('orders.new', 'nobody waits for an answer')
    await connection.flush()
    await until(() => orders.stats().handled === 3)
    expect(orders.stats()).toEqual({ received: 3, handled: 3, failed: 0, redelivered: 0, deadLettered: 0, dropped: 0, inFlight: 0, pending: 0 })
    await orders.close()
  })

  test('answers with nothing if the function has no output', async () => {
    const orders = await trigger({ plugin: await open(wasm), function: 'silent' })
    expect(await request('orders.new', 'tea')).toBe('')
    await orders.close()
  })

  test('shares the messages of a queue with others', async () => {
    const plugin = await open(wasm)
    const workers = [await trigger({ plugin, queue: 'workers' }), await trigger({ plugin, queue: 'workers' })]
    for (let sent = 0; sent < 100; sent++) connection.publish('orders.new')
    await connection.flush()
    const counts = () => workers.map((worker) => worker.stats().handled)
    await until(() => counts()[0] + counts()[1] >= 100)
    expect(counts()[0] + counts()[1]).toBe(100)
    expect(Math.min(...counts())).toBeGreaterThan(0)
    await Promise.all(workers.map((worker) => worker.close()))
  })

  test.each([
    ['traps', 'trap', 'TRAP'],
    ['takes too long', 'endless', 'TIMEOUT'],
    ['does not exist', 'missing', 'FUNCTION_NOT_FOUND']
  ])('answers with a code, and tells the host, if the function %s', async (_, name, code) => {
    const orders = await trigger({ plugin: await open(wasm), function: name, timeoutMs: 100 })
    expect(await request('orders.new', 'tea')).toEqual(['500', code])
    expect(errors).toEqual([[code, 'orders.new']])
    expect(orders.stats()).toMatchObject({ failed: 1, handled: 0 })
    await orders.close()
  })

  test('runs so many calls at once, lets so many messages wait, and refuses more', async () => {
    let release
    const released = new Promise((resolve) => { release = resolve })
    let running = 0
    let most = 0
    const plugin = {
      async call () {
        most = Math.max(most, ++running)
        await released
        running--
        return null
      }
    }
    const orders = await trigger({ plugin, concurrency: 2, maxPending: 3 })
    const answers = Array.from({ length: 6 }, () => request('orders.new'))
    expect(await Promise.race(answers)).toEqual(['503', 'BUSY'])
    expect(orders.stats()).toMatchObject({ received: 6, handled: 0, failed: 0, dropped: 1, inFlight: 2, pending: 3 })
    release()
    expect((await Promise.all(answers)).filter((answer) => answer === '')).toHaveLength(5)
    expect(most).toBe(2)
    await orders.close()
  })

  test('processes, when it is closed, the messages that have come, and takes no others', async () => {
    const orders = await trigger({ plugin: await open(wasm), concurrency: 1 })
    const answers = Array.from({ length: 50 }, (_, index) => request('orders.new', `${index}`))
    await connection.flush()
    await orders.close()
    expect(orders.stats()).toMatchObject({ received: 50, handled: 50, inFlight: 0, pending: 0 })
    expect(await Promise.all(answers)).toHaveLength(50)
    await expect(request('orders.new')).rejects.toThrow('no responders')
    await orders.close()
  })

  test('goes on after the connection was lost', async () => {
    const orders = await trigger({ plugin: await open(wasm) })
    expect(await request('orders.new', 'before')).toContain('before')
    await server.stop()
    await server.start()
    let answer
    while (answer === undefined) {
      answer = await connection.request('orders.new', 'after', { timeout: 500 }).catch(() => undefined)
      await sleep(10)
    }
    expect(answer.string()).toContain('after')
    await orders.close()
  })

  test('can be closed after its connection', async () => {
    const orders = await trigger({ plugin: await open(wasm) })
    await connection.close()
    await orders.close()
  })
})

const options = { subject: 'a', plugin: { call () {} }, function: 'f', onError () {} }

test.each([
  ['a connection', undefined, options],
  ['a subject', null, { ...options, subject: 'a..b' }],
  ['a queue', null, { ...options, queue: 5 }],
  ['a plugin', null, { ...options, plugin: {} }],
  ['a function', null, { ...options, function: undefined }],
  ['onError', null, { ...options, onError: undefined }],
  ['concurrency', null, { ...options, concurrency: 0 }],
  ['known options', null, { ...options, other: 1 }]
])('a trigger needs %s', (_, given, options) => {
  expect(() => natsTrigger(given === null ? connection : given, options)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
})
