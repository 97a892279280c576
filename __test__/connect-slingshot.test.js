'use strict'

const { createClient } = require('redis')
const { connect: openConnection } = require('@nats-io/transport-node')
const { connect, nats, redis } = require('../lib/connect.js')
const { guest } = require('./support/guest.js')
const { startNats } = require('./support/nats.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { startRedis } = require('./support/redis.js')

jest.setTimeout(60_000)

const open = pluginsOfEachTest()

let wasm
let servers
let broker
let client
let subscriber
beforeAll(async () => {
  wasm = await guest('slingshot')
  servers = await Promise.all([startNats(), startRedis()])
  broker = await openConnection({ servers: servers[0].url })
  client = await createClient({ url: servers[1].url }).on('error', () => {}).connect()
  subscriber = await client.duplicate().connect()
})
afterAll(async () => {
  await broker?.close()
  client?.destroy()
  subscriber?.destroy()
  await Promise.all(servers.map((server) => server.stop()))
})

/** A function that calls a host function of slingshot with JSON, as slingshot's PDKs do. */
async function connected (options, connectOptions) {
  const functions = connect({
    natsConnection: nats(broker, { publish: ['news.*'] }),
    redisDb: redis(client, { read: ['visits:*', 'plain'], write: ['visits:*'], publish: ['news:*'], ...options })
  }, { slingshot: true, ...connectOptions })
  const plugin = await open(wasm, { functions })
  return async (name, request, callOptions) =>
    (await plugin.call(name, typeof request === 'string' ? request : JSON.stringify(request), null, callOptions)).json()
}

const success = (text) => ({ success: text, failure: '' })
const failure = (text) => ({ success: '', failure: expect.stringMatching(text) })

test('a guest publishes on NATS', async () => {
  const call = await connected()
  const messages = broker.subscribe('news.*', { max: 1 })
  expect(await call('hostInitNatsConnection', { id: 'natsConnection', url: '0.0.0.0:4222' })).toEqual(success('natsConnection'))
  // As slingshot's PDK for Go writes it.
  expect(await call('hostNatsPublish', '{"id":"natsConnection","subject":"news.today","data":"Hello 👋"}')).toEqual(success('ok'))
  for await (const message of messages) expect([message.subject, message.string()]).toEqual(['news.today', 'Hello 👋'])
})

test('a guest publishes on Redis', async () => {
  const call = await connected()
  const message = new Promise((resolve) => subscriber.subscribe('news:today', resolve))
  await subscriber.ping()
  expect(await call('hostInitRedisClient', { id: 'redisDb', uri: 'redis://elsewhere' })).toEqual(success('redisDb'))
  expect(await call('hostRedisPublish', { id: 'redisDb', channel: 'news:today', payload: 'Hello 👋' })).toEqual(success('ok'))
  expect(await message).toBe('Hello 👋')
})

test('a guest sets, gets, lists and deletes keys of Redis', async () => {
  const call = await connected()
  await client.set('other', 'x')
  expect(await call('hostRedisSet', { id: 'redisDb', key: 'visits:1', value: 'Huey "👋"' })).toEqual(success('visits:1'))
  expect(await call('hostRedisSet', { id: 'redisDb', key: 'visits:2', value: '' })).toEqual(success('visits:2'))
  expect(await call('hostRedisGet', { id: 'redisDb', key: 'visits:1' })).toEqual(success('Huey "👋"'))
  expect(await call('hostRedisGet', { id: 'redisDb', key: 'visits:2' })).toEqual(success(''))
  const listed = await call('hostRedisFilter', { id: 'redisDb', key: '*' })
  expect(JSON.parse(listed.success).sort()).toEqual(['visits:1', 'visits:2'])
  expect(await call('hostRedisDel', { id: 'redisDb', key: 'visits:1' })).toEqual(success('visits:1'))
  expect(await call('hostRedisGet', { id: 'redisDb', key: 'visits:1' })).toEqual({ success: '', failure: 'redis: nil' })
})

test.each([
  ['hostInitNatsConnection', { id: 'other', url: 'nats://elsewhere' }, /^UNKNOWN_CONNECTION: /],
  ['hostNatsPublish', { id: 'natsConnection', subject: 'orders.new', data: '' }, /^NOT_ALLOWED: /],
  ['hostNatsPublish', { id: 'natsConnection', subject: 'news.today', data: 5 }, /^INVALID_REQUEST: /],
  ['hostNatsPublish', '{"id":"natsConnection","subject":"news.today","data":"unescaped ""}', /^INVALID_REQUEST: /],
  ['hostRedisPublish', { id: 'redisDb', channel: 'orders:new', payload: '' }, /^NOT_ALLOWED: /],
  ['hostRedisGet', { id: 'redisDb', key: 'other' }, /^NOT_ALLOWED: /],
  ['hostRedisGet', { id: 'redisDb' }, /^INVALID_REQUEST: /],
  ['hostRedisGet', { id: 'natsConnection', key: 'plain' }, /^UNSUPPORTED: /],
  ['hostRedisSet', { id: 'redisDb', key: 'plain', value: 'x' }, /^NOT_ALLOWED: /],
  ['hostRedisSet', { id: 'redisDb', key: 'visits:3', value: 3 }, /^INVALID_REQUEST: /],
  ['hostRedisSet', { id: 'redisDb', key: 'visits:3', value: 'x'.repeat(101) }, /^TOO_LARGE: /],
  ['hostRedisDel', { id: 'redisDb', key: 'plain' }, /^NOT_ALLOWED: /],
  ['hostRedisFilter', { id: 'redisDb', key: '*a*b*c*d' }, /^INVALID_REQUEST: /]
])('%s(%j) fails with %s', async (name, request, text) => {
  const call = await connected({ maxValueBytes: 100 })
  expect(await call(name, request)).toEqual(failure(text))
})

test('a list of keys has a limit, and a value of another type is not read', async () => {
  const call = await connected({ maxKeys: 2 })
  for (const key of ['visits:a', 'visits:b', 'visits:c']) await client.set(key, 'x')
  expect(await call('hostRedisFilter', { id: 'redisDb', key: 'visits:?' })).toEqual(failure(/^TOO_LARGE: /))
  await client.lPush('visits:list', 'x')
  expect(await call('hostRedisGet', { id: 'redisDb', key: 'visits:list' })).toEqual(failure(/^INVALID_VALUE: /))
})

test('a server that cannot be reached fails in time, and the host is told', async () => {
  const lost = createClient({ url: servers[1].url }).on('error', () => {})
  await lost.connect()
  lost.destroy()
  const seen = []
  const functions = connect({ redisDb: redis(lost, { read: ['*'] }) }, { slingshot: true, onError: (_, origin) => seen.push(origin) })
  const plugin = await open(wasm, { functions })
  expect((await plugin.call('hostRedisGet', '{"id":"redisDb","key":"a"}')).json()).toEqual(failure(/^UNAVAILABLE: /))
  expect(seen).toEqual([{ connection: 'redisDb', operation: 'get' }])
  const silent = { ...Object.fromEntries(['set', 'del', 'publish', 'scanIterator'].map((name) => [name, () => {}])), get: () => new Promise(() => {}) }
  const waiting = await open(wasm, { functions: connect({ redisDb: redis(silent, { read: ['*'], timeoutMs: 50 }) }, { slingshot: true }) })
  expect((await waiting.call('hostRedisGet', '{"id":"redisDb","key":"a"}')).json()).toEqual(failure(/^TIMEOUT: /))
})

test('slingshot\'s functions are there only if the host wants them', async () => {
  await expect(open(wasm, { functions: connect({}) })).rejects.toMatchObject({ code: 'MISSING_IMPORT' })
})

test.each([
  [() => redis({})],
  [() => redis(client, { read: '*' })],
  [() => redis(client, { keys: ['*'] })],
  [() => redis(client, { maxKeys: 0 })],
  [() => connect({}, { slingshot: 1 })]
])('a mistake of the host throws INVALID_ARGUMENT: %s', (make) => {
  expect(make).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
})
