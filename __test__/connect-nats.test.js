'use strict'

const { setTimeout: sleep } = require('node:timers/promises')
const { connect: openConnection, headers } = require('@nats-io/transport-node')
const { connect, nats } = require('../lib/connect.js')
const { guest } = require('./support/guest.js')
const { startNats } = require('./support/nats.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { until } = require('./support/until.js')

const open = pluginsOfEachTest()

let wasm
let server
let connection
beforeAll(async () => {
  wasm = await guest('connected')
  server = await startNats()
})
afterAll(() => server.stop())

beforeEach(async () => { connection = await openConnection({ servers: server.url, reconnectTimeWait: 20, maxReconnectAttempts: -1 }) })
afterEach(() => connection.close())

/** A plugin with a connection `events`; its calls resolve to the reply's first line, parsed, and its payload. */
async function connected (options, { onError, ...pluginOptions } = {}) {
  const plugin = await open(wasm, { ...pluginOptions, functions: connect({ events: nats(connection, options) }, { onError }) })
  return async (name, request, payload = '', callOptions) => {
    const head = Buffer.from(`${JSON.stringify({ connection: 'events', ...request })}\n`)
    const output = await plugin.call(name, Buffer.concat([head, Buffer.from(payload)]), null, callOptions)
    const [line, ...rest] = output.text().split('\n')
    return { ...JSON.parse(line), ...(rest.length > 0 && { payload: rest.join('\n') }) }
  }
}

/** The messages of a subject, as they come. */
async function received (subject) {
  const messages = []
  connection.subscribe(subject, {
    callback: (error, message) => messages.push(error ?? message)
  })
  await connection.flush()
  return messages
}

/** Stops the server, until the connection knows. */
async function lose () {
  const events = connection.status()
  await server.stop()
  for await (const { type } of events) if (type === 'disconnect') break
}

describe('publish', () => {
  test('sends the bytes after the first line, with headers', async () => {
    const messages = await received('orders.*')
    const call = await connected({ publish: ['orders.*'] })
    const bytes = Buffer.from([0, 10, 255, 10])
    expect(await call('publish', { subject: 'orders.new', headers: { trace: 'abc', tag: ['a', 'b'] } }, bytes)).toEqual({})
    expect(await call('publish', { subject: 'orders.empty' })).toEqual({})
    await connection.flush()
    expect(messages.map(({ subject, data }) => [subject, Buffer.from(data)])).toEqual([['orders.new', bytes], ['orders.empty', Buffer.alloc(0)]])
    expect([...messages[0].headers]).toEqual([['trace', ['abc']], ['tag', ['a', 'b']]])
  })

  test.each([
    ['orders.*', 'orders.new', true],
    ['orders.*', 'orders.new.urgent', false],
    ['orders.*', 'orders', false],
    ['orders.>', 'orders.new.urgent', true],
    ['orders.>', 'orders', false],
    ['*.new', 'orders.new', true],
    ['orders.new', 'orders.news', false],
    ['>', 'anything.at.all', true],
    ['>', '$JS.API.STREAM.DELETE.orders', false],
    ['*.a.b', '_INBOX.a.b', false],
    ['$JS.>', '$JS.API.INFO', true]
  ])('with %s, a guest may use %s: %p', async (pattern, subject, isAllowed) => {
    const call = await connected({ publish: [pattern] })
    const reply = await call('publish', { subject })
    if (isAllowed) expect(reply).toEqual({})
    else expect(reply).toMatchObject({ error: { code: 'NOT_ALLOWED' } })
  })

  test('is refused, like requests, if nothing allows it', async () => {
    const call = await connected()
    expect(await call('publish', { subject: 'a' })).toMatchObject({ error: { code: 'NOT_ALLOWED' } })
    expect(await call('request', { subject: 'a' })).toMatchObject({ error: { code: 'NOT_ALLOWED' } })
  })

  test.each([
    [{ subject: 'orders.*' }, 'INVALID_REQUEST'],
    [{ subject: 'orders.>' }, 'INVALID_REQUEST'],
    [{ subject: 'orders..new' }, 'INVALID_REQUEST'],
    [{ subject: 'orders.new\r\nPUB other 0' }, 'INVALID_REQUEST'],
    [{ subject: 'orders new' }, 'INVALID_REQUEST'],
    [{ subject: '' }, 'INVALID_REQUEST'],
    [{ subject: 5 }, 'INVALID_REQUEST'],
    [{}, 'INVALID_REQUEST'],
    [{ subject: 'a', headers: { a: 5 } }, 'INVALID_REQUEST'],
    [{ subject: 'a', headers: ['a'] }, 'INVALID_REQUEST'],
    [{ subject: 'a', headers: { 'a:\r\nb': 'c' } }, 'INVALID_REQUEST'],
    [{ subject: 'a', headers: { a: 'b\r\nc: d' } }, 'INVALID_REQUEST'],
    [{ subject: 'a', headers: { 'Nats-Rollup': 'all' } }, 'NOT_ALLOWED'],
    [{ subject: 'a', headers: { 'nats-expected-stream': 'all' } }, 'NOT_ALLOWED'],
    [{ subject: 'a', connection: 'other' }, 'UNKNOWN_CONNECTION'],
    [{ subject: 'a', connection: undefined }, 'UNKNOWN_CONNECTION'],
    [{ subject: 'a', connection: '__proto__' }, 'UNKNOWN_CONNECTION']
  ])('refuses %j with %s', async (request, code) => {
    const messages = await received('>')
    const call = await connected({ publish: ['>'] })
    expect(await call('publish', request, 'x')).toEqual({ error: { code, message: expect.any(String) } })
    await connection.flush()
    expect(messages).toEqual([])
  })

  test('lets a guest set the header that detects duplicates', async () => {
    const messages = await received('a')
    const call = await connected({ publish: ['a'] })
    expect(await call('publish', { subject: 'a', headers: { 'Nats-Msg-Id': '1' } })).toEqual({})
    await connection.flush()
    expect(messages[0].headers.get('Nats-Msg-Id')).toBe('1')
  })

  test('refuses a message that is longer than maxPayloadBytes, or than the server takes', async () => {
    const call = await connected({ publish: ['a'], maxPayloadBytes: 10 })
    expect(await call('publish', { subject: 'a' }, '0123456789')).toEqual({})
    expect(await call('publish', { subject: 'a' }, '0123456789x')).toMatchObject({ error: { code: 'TOO_LARGE' } })
    expect(await call('publish', { subject: 'a', headers: { a: 'b' } }, '0123456789')).toMatchObject({ error: { code: 'TOO_LARGE' } })
    const unlimited = await connected({ publish: ['a'] })
    expect(await unlimited('publish', { subject: 'a' }, Buffer.alloc(connection.info.max_payload + 1))).toMatchObject({ error: { code: 'TOO_LARGE' } })
  })

  test('works in a synchronous call', async () => {
    const messages = await received('a')
    const plugin = await open(wasm, { functions: connect({ events: nats(connection, { publish: ['a'] }) }) })
    expect(plugin.callSync('publish', '{"connection":"events","subject":"a"}\nsync').text()).toBe('{}')
    await connection.flush()
    expect(messages[0].string()).toBe('sync')
  })

  test('waits while the connection is lost and its buffer full, and goes on afterwards', async () => {
    const call = await connected({ publish: ['a'], maxUnflushedBytes: 100 })
    await lose()
    try {
      expect(await call('publish', { subject: 'a' }, Buffer.alloc(60))).toEqual({})
      await expect(call('publish', { subject: 'a' }, Buffer.alloc(60), { timeoutMs: 300 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    } finally {
      await server.start()
    }
    expect(await call('publish', { subject: 'a' }, Buffer.alloc(60))).toEqual({})
  })

  test('waits for a flush also if many guests publish at the same time', async () => {
    let unflushed = 0
    let most = 0
    const counted = {
      info: connection.info,
      isClosed: () => false,
      request () {},
      publish (subject, payload) {
        unflushed += payload.length
        most = Math.max(most, unflushed)
      },
      async flush () {
        await connection.flush()
        unflushed = 0
      }
    }
    const plugin = await open(wasm, { instances: 8, functions: connect({ events: nats(counted, { publish: ['a'], maxUnflushedBytes: 100 }) }) })
    const message = `{"connection":"events","subject":"a"}\n${'x'.repeat(40)}`
    const replies = await Promise.all(Array.from({ length: 50 }, () => plugin.call('publish', message)))
    expect(replies.map((reply) => reply.text())).toEqual(Array(50).fill('{}'))
    expect(most).toBe(80)
  })

  test('says that the broker cannot be reached if that takes longer than timeoutMs', async () => {
    const call = await connected({ publish: ['a'], maxUnflushedBytes: 1, timeoutMs: 50 })
    await lose()
    try {
      expect(await call('publish', { subject: 'a' }, 'xx')).toEqual({})
      expect(await call('publish', { subject: 'a' }, 'xx')).toMatchObject({ error: { code: 'UNAVAILABLE' } })
    } finally {
      await server.start()
    }
  })

  test('tells the guest a code, and the host the reason, after the connection is closed', async () => {
    const seen = []
    const call = await connected({ publish: ['a'] }, { onError: (error, where) => seen.push([error.name, where]) })
    await connection.close()
    expect(await call('publish', { subject: 'a' })).toEqual({ error: { code: 'UNAVAILABLE', message: 'the broker cannot be reached' } })
    expect(seen).toEqual([['ClosedConnectionError', { connection: 'events', operation: 'publish' }]])
  })
})

describe('request', () => {
  test('ends with its call', async () => {
    connection.subscribe('silent', { callback () {} })
    const events = nats(connection, { request: ['silent'] })
    const plugin = await open(wasm, { functions: connect({ events }) })
    const call = plugin.call('request', '{"connection":"events","subject":"silent"}\n', null, { timeoutMs: 100 })
    await expect(call).rejects.toMatchObject({ code: 'TIMEOUT' })
    await until(() => events.stats().running === 0)
    expect(events.stats().calls).toEqual({ request: { TIMEOUT: 1 } })
  })

  test('resolves to the answer, with its headers', async () => {
    connection.subscribe('prices.*', {
      callback (error, message) {
        if (error) throw error
        const answer = headers()
        answer.append('currency', message.headers.get('currency'))
        message.respond(`${message.string()} costs\n5`, { headers: answer })
      }
    })
    const call = await connected({ request: ['prices.*'] })
    expect(await call('request', { subject: 'prices.get', headers: { currency: 'EUR' } }, 'tea')).toEqual({
      headers: { currency: ['EUR'] },
      payload: 'tea costs\n5'
    })
  })

  test('tells nobody from nobody in time', async () => {
    connection.subscribe('silent', { callback () {} })
    const call = await connected({ request: ['*'] })
    expect(await call('request', { subject: 'nobody' })).toMatchObject({ error: { code: 'NO_RESPONDERS' } })
    expect(await call('request', { subject: 'silent', timeoutMs: 50 })).toEqual({ error: { code: 'TIMEOUT', message: 'nobody has answered in time' } })
    const impatient = await connected({ request: ['*'], timeoutMs: 50 })
    expect(await impatient('request', { subject: 'silent', timeoutMs: 60_000 })).toMatchObject({ error: { code: 'TIMEOUT' } })
    expect(await call('request', { subject: 'silent', timeoutMs: -1 })).toMatchObject({ error: { code: 'INVALID_REQUEST' } })
  })

  test('ends with the deadline of the call', async () => {
    connection.subscribe('silent', { callback () {} })
    const call = await connected({ request: ['*'] })
    await expect(call('request', { subject: 'silent' }, '', { timeoutMs: 50 })).rejects.toMatchObject({ code: 'TIMEOUT' })
  })

  test('refuses an answer that is longer than maxPayloadBytes', async () => {
    connection.subscribe('long', { callback: (error, message) => message.respond(error ?? 'x'.repeat(11)) })
    const call = await connected({ request: ['long'], maxPayloadBytes: 10 })
    expect(await call('request', { subject: 'long' })).toMatchObject({ error: { code: 'TOO_LARGE' } })
  })

  test('has the connection again after it was lost', async () => {
    connection.subscribe('echo', { callback: (error, message) => message.respond(error ?? message.data) })
    const call = await connected({ request: ['echo'] })
    expect(await call('request', { subject: 'echo' }, 'before')).toMatchObject({ payload: 'before' })
    await server.stop()
    await server.start()
    let reply
    do {
      reply = await call('request', { subject: 'echo', timeoutMs: 500 }, 'after')
      await sleep(10)
    } while (reply.error !== undefined)
    expect(reply).toMatchObject({ payload: 'after' })
  })
})

describe('a request', () => {
  test.each([
    ['text', 'INVALID_REQUEST', 'not JSON'],
    ['an array', 'INVALID_REQUEST', '[]'],
    ['null', 'INVALID_REQUEST', 'null'],
    ['not UTF-8', 'INVALID_REQUEST', Buffer.from([0xff])],
    ['empty', 'INVALID_REQUEST', ''],
    ['too long', 'TOO_LARGE', `{"connection":"events","subject":"a","headers":{"a":"${'x'.repeat(2 ** 20)}"}}`]
  ])('that is %s is refused with %s', async (_, code, input) => {
    const plugin = await open(wasm, { functions: connect({ events: nats(connection, { publish: ['a'] }) }) })
    expect((await plugin.call('publish', input)).json()).toEqual({ error: { code, message: expect.any(String) } })
  })

  test('for an operation that its connection does not have is refused', async () => {
    const call = await connected()
    expect(await call('query', { statement: 'x' })).toMatchObject({ error: { code: 'UNSUPPORTED' } })
  })
})

test.each([
  [() => connect()],
  [() => connect({ events: {} })],
  [() => connect({}, { unknown: true })],
  [() => connect({}, { onError: 'log' })],
  [() => nats()],
  [() => nats(connection, { publish: 'orders.*' })],
  [() => nats(connection, { publish: ['orders.>.new'] })],
  [() => nats(connection, { publish: ['orders..new'] })],
  [() => nats(connection, { subjects: [] })],
  [() => nats(connection, { timeoutMs: 0 })]
])('a mistake of the host throws INVALID_ARGUMENT: %s', (make) => {
  expect(make).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
})
