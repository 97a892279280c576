'use strict'

// The channels of node:diagnostics_channel, with real plugins.

const { once } = require('node:events')
const { AsyncLocalStorage } = require('node:async_hooks')
const diagnosticsChannel = require('node:diagnostics_channel')
const { createServer } = require('node:http')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { MemoryStore } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

const TRACING = ['call', 'host-function', 'reload']
const EVENTS = ['start', 'end', 'asyncStart', 'asyncEnd', 'error']

const open = pluginsOfEachTest()
const none = () => {}

let asking
let http
let store
let many
beforeAll(async () => { [asking, http, store, many] = await Promise.all(['asking', 'http', 'store', 'many'].map(guest)) })

const cleanups = []
afterEach(async () => { for (const cleanup of cleanups.splice(0).reverse()) await cleanup() })

/** Collects the messages of all channels, as `[channel and event, message]`. */
function listen (channels = [...TRACING, 'store', 'http']) {
  const seen = []
  for (const name of channels) {
    const isTracing = TRACING.includes(name)
    for (const event of isTracing ? EVENTS : [undefined]) {
      const full = isTracing ? `tracing:extism-host:${name}:${event}` : `extism-host:${name}`
      const listener = (message) => seen.push([isTracing ? `${name} ${event}` : name, message])
      diagnosticsChannel.subscribe(full, listener)
      cleanups.push(() => diagnosticsChannel.unsubscribe(full, listener))
    }
  }
  return seen
}

const names = (seen) => seen.map(([name]) => name)

function askingPlugin (ask) {
  return open(asking, { name: 'asking', functions: { 'extism:host/user': { ask }, numbers: { mix: none, i32: none, f32: none, nothing: none } } })
}

describe('the channel extism-host:call', () => {
  test('tells how long a call waited and ran, its version and its bytes', async () => {
    const plugin = await askingPlugin(() => 'answer')
    const seen = listen(['call'])
    await plugin.call('ask', 'Jürgen')
    expect(names(seen)).toEqual(['call start', 'call end', 'call asyncStart', 'call asyncEnd'])
    const [, message] = seen[3]
    expect(message).toMatchObject({ plugin: 'asking', version: plugin.stats().version, function: 'ask', inputBytes: 7, droppedOperations: 0 })
    expect(message.version).toMatch(/^[0-9a-f]{16}$/)
    expect(message.queueMs).toBeGreaterThanOrEqual(0)
    expect(message.runMs).toBeGreaterThan(0)
    expect(message.result.text()).toBe('answer')
    expect(Math.abs(message.startTime - Date.now())).toBeLessThan(60_000)
  })

  test('tells the error of a call, and of one that was aborted or never started', async () => {
    const plugin = await open(many, { maxQueue: 1 })
    const seen = listen(['call'])
    const controller = new AbortController()
    const aborted = plugin.call('loop_for_ever', '', null, { signal: controller.signal })
    const refused = plugin.call('loop_for_ever')
    await expect(refused).rejects.toMatchObject({ code: 'QUEUE_FULL' })
    const [, full] = seen.find(([name]) => name === 'call error')
    expect(full.error.code).toBe('QUEUE_FULL')
    expect(full.runMs).toBeUndefined()
    while (plugin.stats().busy === 0) await new Promise((resolve) => setTimeout(resolve, 5))
    controller.abort(new Error('enough'))
    await expect(aborted).rejects.toThrow('enough')
    const [name, message] = seen.at(-1)
    expect([name, message.error.message]).toEqual(['call asyncEnd', 'enough'])
    expect(message.runMs).toBeGreaterThan(0)
  })

  test('has a synchronous call end with `end`, and long inputs are traced, too', async () => {
    const plugin = await askingPlugin((context, offset) => context.read(offset))
    const seen = listen(['call'])
    const input = 'x'.repeat(100_000)
    expect(plugin.callSync('ask', input).text()).toBe(input)
    expect(names(seen)).toEqual(['call start', 'call end'])
    expect(seen[1][1]).toMatchObject({ inputBytes: 100_000, runMs: expect.any(Number) })
    await plugin.call('ask', input)
    expect(seen.at(-1)[1].runMs).toBeGreaterThan(0)
  })

  test('costs calls nothing once nobody listens any longer', async () => {
    const plugin = await askingPlugin(() => 'answer')
    const seen = listen()
    await plugin.call('ask')
    const before = seen.length
    for (const cleanup of cleanups.splice(0)) cleanup()
    await plugin.call('ask')
    expect(seen).toHaveLength(before)
  })
})

describe('the channel extism-host:host-function', () => {
  test('names the call, and lasts until an asynchronous function has settled', async () => {
    const plugin = await askingPlugin(async () => 'later')
    const seen = listen(['call', 'host-function'])
    await plugin.call('ask')
    expect(names(seen)).toEqual([
      'call start', 'call end',
      'host-function start', 'host-function end', 'host-function asyncStart', 'host-function asyncEnd',
      'call asyncStart', 'call asyncEnd'
    ])
    expect(seen[5][1]).toMatchObject({ plugin: 'asking', namespace: 'extism:host/user', function: 'ask', result: 'later' })
    expect(seen[5][1].call).toBe(seen[0][1])
  })

  test('tells the error of a function that throws', async () => {
    const plugin = await askingPlugin(() => { throw new TypeError('no') })
    const seen = listen(['host-function'])
    await expect(plugin.call('ask')).rejects.toThrow('no')
    expect(names(seen)).toEqual(['host-function start', 'host-function error', 'host-function end'])
  })

  test('can run the function in a context of its own', async () => {
    const storage = new AsyncLocalStorage()
    const plugin = await askingPlugin(async () => {
      await null
      return storage.getStore()
    })
    const onStart = (message) => { message.around = (work) => storage.run('inside', work) }
    diagnosticsChannel.subscribe('tracing:extism-host:host-function:start', onStart)
    cleanups.push(() => diagnosticsChannel.unsubscribe('tracing:extism-host:host-function:start', onStart))
    expect((await plugin.call('ask')).text()).toBe('inside')
  })
})

test('the channel extism-host:store tells each operation, without keys and values', async () => {
  const plugin = await open(store, { store: new MemoryStore([['key', 'value']]) })
  const seen = listen(['store', 'call'])
  await plugin.call('get', 'key').catch(() => {})
  const [, message] = seen.find(([name]) => name === 'store')
  expect(message).toMatchObject({ function: 'hostStoreGet', system: 'memory', durationMs: expect.any(Number), error: undefined })
  expect(message.call).toBe(seen[0][1])
  expect(Object.keys(message)).not.toContain('key')
})

test('of a guest\'s many operations, the first 128 are told, and the others counted', async () => {
  const wasm = await assemble(`(module
    (import "extism:host/user" "hostStoreExists" (func $exists (param i64) (result i64)))
    (func (export "run") (local $left i32)
      (local.set $left (i32.const 200))
      (loop $again
        (drop (call $exists (i64.const 0)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br_if $again (local.get $left)))))`)
  const plugin = await open(wasm)
  const seen = listen(['store', 'call'])
  await plugin.call('run')
  expect(seen.filter(([name]) => name === 'store')).toHaveLength(128)
  expect(seen.at(-1)[1].droppedOperations).toBe(72)
})

test('the channel extism-host:http tells a guest\'s request without its query, and sends traceparent', async () => {
  let received
  const server = createServer((request, response) => {
    received = request.headers
    response.writeHead(404).end('none')
  }).listen(0, '127.0.0.1')
  cleanups.push(() => server.close())
  await once(server, 'listening')
  const url = `http://127.0.0.1:${server.address().port}/path`
  const plugin = await open(http, { allowedHosts: ['127.0.0.1'] })
  const seen = listen(['http', 'call'])
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
  const onStart = (message) => { message.traceparent = traceparent }
  diagnosticsChannel.subscribe('tracing:extism-host:call:start', onStart)
  cleanups.push(() => diagnosticsChannel.unsubscribe('tracing:extism-host:call:start', onStart))
  const request = JSON.stringify({ url: `${url}?token=secret`, headers: { traceparent: 'of the guest' } })
  await plugin.call('body', `${request}\n`)
  const [, message] = seen.find(([name]) => name === 'http')
  expect(message).toMatchObject({ method: 'GET', url, status: 404, error: undefined })
  expect(message.durationMs).toBeGreaterThan(0)
  expect(received.traceparent).toBe(traceparent)
})

test('the channel extism-host:reload tells the versions, and why a reload failed', async () => {
  const app = Fastify()
  cleanups.push(() => app.close())
  let source = many
  app.register(extismHost, { plugins: { many: { source: many } } })
  await app.ready()
  const seen = listen(['reload'])
  await app.extism.reload('many')
  const { version } = app.extism.plugin('many').stats()
  expect(seen.at(-1)).toEqual(['reload asyncEnd', { plugin: 'many', version, newVersion: version, result: undefined }])
  source = store
  await app.extism.update({ many: { source } })
  expect(seen.at(-1)[1].newVersion).not.toBe(version)
  await expect(app.extism.update({ many: { source: Buffer.from('not wasm') } })).rejects.toMatchObject({ code: 'INVALID_WASM' })
  expect(seen.at(-1)[1].error.code).toBe('INVALID_WASM')
})
