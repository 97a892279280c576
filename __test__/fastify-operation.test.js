'use strict'

const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { createPlugin, MemoryStore, openStore, Plugin, Store } = require('..')
const { connect, nats } = require('../lib/connect.js')
const { guest } = require('./support/guest.js')
const { until } = require('./support/until.js')

let many
let app

beforeAll(async () => { many = await guest('many') })
afterEach(async () => { await app?.close() })

function build (options) {
  app = Fastify()
  app.register(extismHost, { plugins: { many }, ...options })
  return app.ready()
}

test('closing the app interrupts calls that do not end within closeTimeoutMs', async () => {
  await build({ closeTimeoutMs: 50, routes: [{ url: '/', plugin: 'many', function: 'loop_for_ever' }] })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address()
  const answer = fetch(`http://127.0.0.1:${port}/`, { method: 'POST', headers: { connection: 'close' } })
  while (app.extism.plugin('many').stats().busy === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  await app.close()
  expect((await answer).status).toBe(503)
})

test('routes for operators are not in the API description, and requests to polled routes are not logged', async () => {
  app = Fastify()
  const routes = []
  app.addHook('onRoute', ({ url, logLevel, schema }) => routes.push([url, logLevel, schema.hide]))
  app.register(extismHost, { plugins: { many }, health: true, metrics: true, admin: { token: 'a token of many characters' } })
  await app.ready()
  expect(routes.map(([url]) => url)).toEqual(expect.arrayContaining(['/health/live', '/health/ready', '/metrics', '/admin/plugins/:name/reload']))
  for (const [url, ...rest] of routes) expect([url, ...rest]).toEqual([url, url.startsWith('/admin') ? '' : 'warn', true])
})

describe('health', () => {
  test('is off by default', async () => {
    await build()
    for (const url of ['/health/live', '/health/ready', '/metrics']) expect((await app.inject(url)).statusCode).toBe(404)
  })

  test('reports that the process lives and can serve', async () => {
    await build({ health: true, store: new MemoryStore() })
    const live = await app.inject('/health/live')
    expect([live.statusCode, live.json()]).toEqual([200, { status: 'ok' }])
    const ready = await app.inject('/health/ready')
    expect([ready.statusCode, ready.json()]).toEqual([200, { status: 'ok', plugins: 'ok', store: 'ok' }])
  })

  test('may have another prefix', async () => {
    await build({ health: { prefix: '/internal' }, prefix: '/api' })
    expect((await app.inject('/api/internal/ready')).statusCode).toBe(200)
  })

  test('reports a closed plugin', async () => {
    const given = await createPlugin(many)
    await build({ plugins: { many, given }, health: true })
    await given.close()
    const { statusCode, payload } = await app.inject('/health/ready')
    expect([statusCode, JSON.parse(payload)]).toEqual([503, { status: 'unavailable', plugins: 'unavailable', store: 'ok' }])
    expect((await app.inject('/health/live')).statusCode).toBe(200)
  })

  test.each([
    ['the app\'s', (store) => ({ store })],
    ['with a prefix', (store) => ({ store: { store, prefix: 'p:' } })],
    ['a plugin\'s own', (store) => ({ plugins: { many: { source: many, store } } })]
  ])('reports a closed store: %s', async (name, options) => {
    const store = await openStore('memory:')
    await build({ health: true, ...options(store) })
    expect((await app.inject('/health/ready')).statusCode).toBe(200)
    await store.close()
    const { statusCode, payload } = await app.inject('/health/ready')
    expect([statusCode, JSON.parse(payload)]).toEqual([503, { status: 'unavailable', plugins: 'ok', store: 'unavailable' }])
  })

  test('reports a plugin whose threads are all stuck, until one is free again', async () => {
    await build({ health: true })
    const unavailable = Object.assign(new Error('all threads are stuck'), { code: 'UNAVAILABLE' })
    const stats = { ...app.extism.plugin('many').stats(), busy: 1, abandonedThreads: 16 }
    const mocks = [
      jest.spyOn(Plugin.prototype, 'call').mockRejectedValue(unavailable),
      jest.spyOn(Plugin.prototype, 'stats').mockImplementation(() => stats)
    ]
    await expect(app.extism.plugin('many').call('echo')).rejects.toBe(unavailable)
    for (let i = 0; i < 2; i++) {
      const { statusCode, payload } = await app.inject('/health/ready')
      expect([statusCode, JSON.parse(payload)]).toEqual([503, { status: 'unavailable', plugins: 'unavailable', store: 'ok' }])
    }
    stats.abandonedThreads = 15
    expect((await app.inject('/health/ready')).statusCode).toBe(200)
    mocks.forEach((mock) => mock.mockRestore())
  })

  test('reports that the app is about to be closed', async () => {
    await build({ health: true })
    app.extism.drain()
    const { statusCode, payload } = await app.inject('/health/ready')
    expect([statusCode, JSON.parse(payload)]).toEqual([503, { status: 'draining' }])
    expect((await app.inject('/health/live')).statusCode).toBe(200)
  })

  test('reports a full store from the first refused write on, until it has space', async () => {
    const store = await openStore('memory:')
    await build({ health: true, store })
    const full = Object.assign(new Error('there is no room'), { code: 'STORE_FULL' })
    const set = jest.spyOn(Store.prototype, 'set').mockRejectedValue(full)
    expect((await app.inject('/health/ready')).statusCode).toBe(200)
    expect(set).not.toHaveBeenCalled()
    const stats = app.extism.plugin('many').stats()
    stats.store.failed.STORE_FULL = 1
    const mock = jest.spyOn(Plugin.prototype, 'stats').mockReturnValue(stats)
    for (let i = 0; i < 2; i++) {
      const { statusCode, payload } = await app.inject('/health/ready')
      expect([statusCode, JSON.parse(payload)]).toEqual([503, { status: 'unavailable', plugins: 'ok', store: 'unavailable' }])
    }
    set.mockRestore()
    for (let i = 0; i < 2; i++) expect((await app.inject('/health/ready')).statusCode).toBe(200)
    expect(await store.has('extism-host:probe')).toBe(false)
    mock.mockRestore()
  })

  test('does not wait for a store that does not respond', async () => {
    const store = await openStore('memory:')
    await build({ health: true, store })
    const has = jest.spyOn(Store.prototype, 'has').mockReturnValue(new Promise(() => {}))
    expect((await app.inject('/health/ready')).json()).toMatchObject({ store: 'unavailable' })
    has.mockRestore()
  })

  test.each([[{ prefix: 'x' }], [{ prefix: '/x/' }], [{ prefix: 5 }], [{ path: '/x' }], ['/x']])('that is %j is refused', async (health) => {
    await expect(build({ health })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('health') })
  })
})

describe('metrics', () => {
  const lines = async () => (await app.inject('/metrics')).payload.split('\n')

  test('count calls by plugin, function and outcome, from routes and others, and how long they take', async () => {
    await build({ metrics: true, routes: [{ url: '/echo', plugin: 'many', function: 'echo' }] })
    await app.inject({ method: 'POST', url: '/echo', payload: 'x' })
    const plugin = app.extism.plugin('many')
    await plugin.call('echo', 'x')
    await plugin.call('trap').catch(() => {})
    for (const name of ['none', 'neither', 5]) await plugin.call(name).catch(() => {})
    await plugin.call('echo', 5).catch(() => {})
    await plugin.call('silent', '', null, { signal: AbortSignal.abort() }).catch(() => {})
    const all = await lines()
    expect(all.filter((line) => line.startsWith('extism_plugin_calls_total{')).sort()).toEqual([
      'extism_plugin_calls_total{plugin="many",function="",code="FUNCTION_NOT_FOUND"} 2',
      'extism_plugin_calls_total{plugin="many",function="",code="INVALID_ARGUMENT"} 1',
      'extism_plugin_calls_total{plugin="many",function="echo",code="INVALID_ARGUMENT"} 1',
      'extism_plugin_calls_total{plugin="many",function="echo",code="OK"} 2',
      'extism_plugin_calls_total{plugin="many",function="silent",code="CANCELED"} 1',
      'extism_plugin_calls_total{plugin="many",function="trap",code="TRAP"} 1'
    ])
    expect(all).toContain('extism_plugin_call_duration_seconds_count{plugin="many",function="echo"} 3')
  })

  test('contain the plugins\' own counters', async () => {
    await build({ metrics: true, store: new MemoryStore([['key', 'value']]) })
    const plugin = app.extism.plugin('many')
    for (const key of ['key', 'key', 'missing']) {
      await plugin.call('read_store', key)
      // The next call would have to wait if it came before that.
      await until(() => plugin.stats().ready === 1)
    }
    await plugin.call('trap').catch(() => {})
    // The instance that trapped is replaced in the background.
    await until(() => plugin.stats().made === 2 && plugin.stats().ready === 1)
    const expected = [
      'extism_plugin_queued_calls{plugin="many"} 0', 'extism_plugin_busy_instances{plugin="many"} 0', 'extism_plugin_instances{plugin="many"} 1',
      'extism_plugin_instances_replaced_total{plugin="many",reason="trap"} 1', 'extism_plugin_store_reads_total{plugin="many"} 3',
      'extism_plugin_instances_made_total{plugin="many"} 2', 'extism_plugin_waited_calls_total{plugin="many"} 0',
      'extism_plugin_ready_instances{plugin="many"} 1', 'extism_plugin_store_hits_total{plugin="many"} 2', 'extism_plugin_store_writes_total{plugin="many"} 0', 'extism_plugin_abandoned_threads{plugin="many"} 0'
    ]
    for (let round = 0; round < 2; round++) expect(await lines()).toEqual(expect.arrayContaining(expected))
  })

  test('count what guests do on connections, by connection, operation and outcome', async () => {
    const client = { publish () {}, request: async () => {}, flush: async () => {} }
    const functions = connect({ events: nats(client, { publish: ['orders.*'] }) })
    await build({ plugins: { connected: { source: await guest('connected'), functions } }, metrics: true })
    const publish = (connection, subject) => app.extism.plugin('connected').call('publish', JSON.stringify({ connection, subject }))
    await publish('events', 'orders.new')
    await publish('events', 'orders.old')
    await publish('events', 'invoices.new')
    await publish('anything', 'orders.new')
    for (let round = 0; round < 2; round++) {
      if (round === 1) await app.extism.reload('connected')
      expect((await lines()).filter((line) => line.startsWith('extism_connector_calls_total{')).sort()).toEqual([
        'extism_connector_calls_total{plugin="connected",connector="",operation="publish",outcome="UNKNOWN_CONNECTION"} 1',
        'extism_connector_calls_total{plugin="connected",connector="events",operation="publish",outcome="NOT_ALLOWED"} 1',
        'extism_connector_calls_total{plugin="connected",connector="events",operation="publish",outcome="OK"} 2'
      ])
    }
  })

  test('tell waiting from running, memory, code, versions, the event loop and threads', async () => {
    await build({ metrics: true })
    const plugin = app.extism.plugin('many')
    await plugin.call('echo', 'x')
    const valueOf = (all, name) => Number(all.find((line) => line.startsWith(`${name} `))?.split(' ')[1])
    const all = await lines()
    expect(valueOf(all, 'extism_plugin_call_queue_seconds_count{plugin="many"}')).toBe(1)
    expect(valueOf(all, 'extism_plugin_call_run_seconds_count{plugin="many",function="echo"}')).toBe(1)
    expect(valueOf(all, 'extism_plugin_call_run_seconds_sum{plugin="many",function="echo"}')).toBeGreaterThan(0)
    expect(valueOf(all, 'extism_plugin_memory_bytes{plugin="many"}')).toBeGreaterThan(65_536)
    expect(valueOf(all, 'extism_plugin_code_bytes{plugin="many"}')).toBeGreaterThan(1_000)
    expect(valueOf(all, 'extism_plugin_threads{plugin="many"}')).toBe(1)
    expect(all).toContain(`extism_plugin_info{plugin="many",version="${plugin.stats().version}"} 1`)
    expect(valueOf(all, 'extism_event_loop_utilization')).toBeLessThanOrEqual(1)
    if (process.platform === 'linux') expect(valueOf(all, 'extism_process_threads')).toBeGreaterThan(1)
  })

  test('count on through a reload', async () => {
    await build({ metrics: true, store: new MemoryStore([['key', 'value']]) })
    const plugin = app.extism.plugin('many')
    await plugin.call('read_store', 'key')
    await plugin.call('trap').catch(() => {})
    const expected = (made) => [
      'extism_plugin_store_reads_total{plugin="many"} 1', 'extism_plugin_instances_replaced_total{plugin="many",reason="trap"} 1',
      `extism_plugin_instances_made_total{plugin="many"} ${made}`, `extism_plugin_versions_total{plugin="many"} ${made - 1}`
    ]
    await until(async () => plugin.stats().made === 2)
    expect(await lines()).toEqual(expect.arrayContaining(expected(2)))
    await app.extism.reload('many')
    expect(await lines()).toEqual(expect.arrayContaining(expected(3)))
  })

  test('are Prometheus text, at another path too', async () => {
    await build({ metrics: { prefix: '/internal/metrics' } })
    expect((await app.inject('/internal/metrics')).headers['content-type']).toMatch(/^text\/plain; version=/)
    expect((await app.inject('/metrics')).statusCode).toBe(404)
  })

  test('of two apps are apart', async () => {
    await build({ metrics: true })
    await app.extism.plugin('many').call('echo', 'x')
    const first = app
    await build({ metrics: true })
    expect((await lines()).filter((line) => line.startsWith('extism_plugin_calls_total{'))).toEqual([])
    await first.close()
  })
})
