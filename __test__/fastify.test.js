'use strict'

const { request: httpRequest } = require('node:http')
const { Writable } = require('node:stream')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { createPlugin, MemoryStore } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { until } = require('./support/until.js')

const NO_ANSWER = 'the plugin gave no answer'

let many
let app

beforeAll(async () => { many = await guest('many') })
afterEach(async () => { await app?.close() })

/** An app with the routes of these functions, each at its name, and what else it is registered with. */
function build (routes = {}, options = {}, fastifyOptions = {}) {
  app = Fastify(fastifyOptions)
  app.register(extismHost, {
    plugins: { many },
    routes: Object.entries(routes).map(([name, route]) => ({ url: `/${name}`, plugin: 'many', function: name, ...route })),
    ...options
  })
  return app
}

const post = (url, payload, headers) => app.inject({ method: 'POST', url, payload, headers })

describe('a route', () => {
  test.each([
    'application/json', 'text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', ';;;', undefined
  ])('passes the body unchanged if its type is %s', async (type) => {
    build({ echo: {} })
    const bytes = Buffer.from([0xFF, 0x00, 0x7B])
    const response = await post('/echo', bytes, type === undefined ? {} : { 'content-type': type })
    expect([response.statusCode, [...response.rawPayload]]).toEqual([200, [...bytes]])
    expect(response.headers['content-type']).toBe('application/octet-stream')
  })

  test('has a method, a content type and parameters', async () => {
    const params = { type: 'object', properties: { id: { type: 'integer' } } }
    build({ echo: { method: ['GET', 'PUT'], url: '/things/:id', contentType: 'text/plain; charset=utf-8', schema: { params } } })
    const response = await app.inject({ method: 'PUT', url: '/things/7', payload: 'hello' })
    expect([response.statusCode, response.body, response.headers['content-type']]).toEqual([200, 'hello', 'text/plain; charset=utf-8'])
    expect((await app.inject('/things/7')).body).toBe('')
    expect((await app.inject('/things/seven')).json()).toMatchObject({ statusCode: 400, code: 'FST_ERR_VALIDATION' })
    expect((await post('/things/7')).statusCode).toBe(404)
  })

  test('passes an empty input without a body, and responds with an empty body to an empty output', async () => {
    build({ echo: {}, silent: {} })
    expect((await post('/echo')).body).toBe('')
    const response = await post('/silent', 'x')
    expect([response.statusCode, response.body]).toEqual([200, ''])
  })

  test('does not change the parsers of the app\'s own routes', async () => {
    build({ echo: {} })
    app.post('/own', async (request) => request.body)
    expect((await post('/own', { a: 1 })).json()).toEqual({ a: 1 })
    expect((await post('/own', 'x', { 'content-type': 'image/png' })).statusCode).toBe(415)
  })

  test('is under the prefix of its registration', async () => {
    build({ echo: {} }, { prefix: '/api' })
    expect((await post('/api/echo', 'x')).body).toBe('x')
    expect((await post('/echo', 'x')).statusCode).toBe(404)
  })

  test('has the hooks of the app', async () => {
    app = Fastify()
    app.addHook('onRequest', async (request, reply) => request.headers.authorization ?? reply.code(401).send('who are you?'))
    app.register(extismHost, { plugins: { many }, routes: [{ url: '/echo', plugin: 'many', function: 'echo' }] })
    expect((await post('/echo')).statusCode).toBe(401)
  })

  test('shows its request to host functions in JavaScript', async () => {
    const wasm = await assemble(`(module (import "extism:host/user" "who" (func $who (result i64)))
      (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
      (import "extism:host/env" "length" (func $length (param i64) (result i64)))
      (func (export "who") (local $answer i64)
        (call $output_set (local.tee $answer (call $who)) (call $length (local.get $answer)))))`)
    const who = (context) => context.hostContext().headers['x-user']
    build({}, {
      plugins: { asking: { source: wasm, functions: { 'extism:host/user': { who } } } },
      routes: [{ url: '/', plugin: 'asking', function: 'who' }]
    })
    expect((await post('/', '', { 'x-user': 'Jane' })).body).toBe('Jane')
  })
})

describe('a call that fails', () => {
  const answer = (statusCode, code, error) => ({ statusCode, code, error, message: NO_ANSWER })

  test.each([
    ['fail', 'PLUGIN_ERROR'], ['trap', 'TRAP'], ['recurse', 'TRAP'], ['grow_for_ever', 'OUT_OF_MEMORY']
  ])('as %s does is a 500 with the code %s, and without internals', async (name, code) => {
    build({ [name]: {} }, { plugins: { many: { source: many, memory: { maxPages: 4 } } } })
    const response = await post(`/${name}`, 'the password is 1234')
    expect(response.json()).toEqual(answer(500, code, 'Internal Server Error'))
  })

  test('by the plugin\'s time limit is a 504, and the next one works', async () => {
    build({ loop_for_ever: {}, echo: {} }, { plugins: { many: { source: many, timeoutMs: 50 } } })
    expect((await post('/loop_for_ever')).json()).toEqual(answer(504, 'TIMEOUT', 'Gateway Timeout'))
    expect((await post('/echo', 'x')).body).toBe('x')
  })

  test('by the route\'s time limit is a 504 too', async () => {
    build({ loop_for_ever: { timeoutMs: 50 } })
    expect((await post('/loop_for_ever')).json()).toEqual(answer(504, 'TIMEOUT', 'Gateway Timeout'))
  })

  test('because the queue is full is a 503 with Retry-After', async () => {
    build({ compute: {} }, { plugins: { many: { source: many, maxQueue: 1 } } })
    const responses = await Promise.all([post('/compute', Buffer.from([20])), post('/compute', Buffer.from([20]))])
    const refused = responses.find(({ statusCode }) => statusCode !== 200)
    expect(refused.json()).toEqual(answer(503, 'QUEUE_FULL', 'Service Unavailable'))
    expect(refused.headers['retry-after']).toBe('1')
  })

  test('because the plugin is closed is a 503', async () => {
    const plugin = await createPlugin(many)
    build({ echo: {} }, { plugins: { many: plugin } })
    await app.ready()
    await plugin.close()
    expect((await post('/echo')).json()).toEqual(answer(503, 'CLOSED', 'Service Unavailable'))
  })

  test('because a host function has thrown does not expose its error', async () => {
    const wasm = await assemble('(module (import "extism:host/user" "f" (func $f)) (func (export "run") (call $f)))')
    const f = () => { throw Object.assign(new Error('cannot reach 10.0.0.7'), { code: 'ECONNREFUSED', statusCode: 418 }) }
    build({}, {
      plugins: { asking: { source: wasm, functions: { 'extism:host/user': { f } } } },
      routes: [{ url: '/', plugin: 'asking', function: 'run' }]
    })
    expect((await post('/')).json()).toEqual(answer(500, 'HOST_FUNCTION_ERROR', 'Internal Server Error'))
  })

  test('is an error with its cause for the app\'s error handler', async () => {
    build({ fail: {} })
    app.setErrorHandler((error, request, reply) => reply.code(503).send(`${error.code}, as ${error.cause.message}`))
    const response = await post('/fail', 'it is broken')
    expect([response.statusCode, response.body]).toEqual([503, 'PLUGIN_ERROR, as Plugin-originated error: it is broken'])
  })

  test('is in the log with its cause', async () => {
    const lines = []
    build({ fail: {} }, {}, { logger: { level: 'error', stream: lineStream(lines) } })
    await post('/fail', 'it is broken')
    expect(lines).toHaveLength(1)
    expect(lines[0]).toMatchObject({ level: 50, reqId: 'req-1', err: { code: 'PLUGIN_ERROR' } })
    expect(lines[0].err.stack).toContain('it is broken')
  })
})

test('a body that is too large is refused with 413, by the app\'s limit or the route\'s', async () => {
  build({ echo: {}, silent: { bodyLimit: 3 } }, {}, { bodyLimit: 10 })
  expect((await post('/echo', Buffer.alloc(11))).json()).toMatchObject({ statusCode: 413, code: 'FST_ERR_CTP_BODY_TOO_LARGE' })
  expect((await post('/echo', Buffer.alloc(10))).statusCode).toBe(200)
  expect((await post('/silent', Buffer.alloc(4))).statusCode).toBe(413)
})

function lineStream (lines) {
  return new Writable({
    write (chunk, encoding, done) {
      lines.push(JSON.parse(chunk))
      done()
    }
  })
}

describe('messages of a plugin', () => {
  const LOGGING = `(module
    (import "extism:host/env" "input_offset" (func $input (result i64)))
    (import "extism:host/env" "log_info" (func $info (param i64)))
    (import "extism:host/env" "log_debug" (func $debug (param i64)))
    (func (export "log") (call $info (call $input)) (call $debug (call $input))))`

  async function linesOf (level, options) {
    const lines = []
    app = Fastify({ logger: { level, stream: lineStream(lines) } })
    app.register(extismHost, {
      plugins: { logging: { source: await assemble(LOGGING), ...options } },
      routes: [{ url: '/log', plugin: 'logging', function: 'log' }]
    })
    await post('/log', 'hello')
    await post('/log', 'again')
    return lines.filter(({ msg }) => ['hello', 'again'].includes(msg)).map(({ level, msg, reqId }) => [level, msg, reqId])
  }

  test('go to the log of their request, from the level of the app\'s log on', async () => {
    expect(await linesOf('info')).toEqual([[30, 'hello', 'req-1'], [30, 'again', 'req-2']])
    await app.close()
    expect(await linesOf('debug')).toHaveLength(4)
    await app.close()
    expect(await linesOf('fatal')).toEqual([])
  })

  test('may have a level of their own', async () => {
    expect(await linesOf('debug', { logLevel: 'info' })).toEqual([[30, 'hello', 'req-1'], [30, 'again', 'req-2']])
  })
})

describe('a client that disconnects', () => {
  /** Sends a request on a socket of its own and returns what ends it. */
  function send (path) {
    const request = httpRequest({ port: app.server.address().port, host: '127.0.0.1', method: 'POST', path })
    const gone = new Promise((resolve) => request.on('error', resolve).on('response', (response) => response.resume()))
    request.end('x')
    return { leave: () => { request.destroy(); return gone } }
  }

  test('cancels its call, running or queued', async () => {
    build({ loop_for_ever: {}, echo: {} })
    await app.listen({ port: 0, host: '127.0.0.1' })
    const plugin = app.extism.plugin('many')
    const running = send('/loop_for_ever')
    await until(() => plugin.stats().busy === 1)
    const waiting = send('/echo')
    await until(() => plugin.stats().queued === 1)
    await waiting.leave()
    await until(() => plugin.stats().queued === 0)
    expect(plugin.stats().busy).toBe(1)
    await running.leave()
    await until(() => plugin.stats().calls.failed.CANCELED === 2)
    expect(await (await fetch(`http://127.0.0.1:${app.server.address().port}/echo`, { method: 'POST', body: 'next' })).text()).toBe('next')
    expect(plugin.stats().calls).toEqual({ succeeded: 1, failed: { CANCELED: 2 } })
  })

  test('after its response cancels nothing: the listener is removed by then', async () => {
    const listeners = []
    app = Fastify()
    app.addHook('onResponse', async (request, reply) => listeners.push(reply.raw.listenerCount('close')))
    app.post('/own', async () => 'x')
    app.register(extismHost, { plugins: { many }, routes: [{ url: '/echo', plugin: 'many', function: 'echo' }] })
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    for (const path of ['/own', '/echo']) await (await fetch(url + path, { method: 'POST', body: 'x' })).text()
    expect(listeners[1]).toBe(listeners[0])
  })
})

describe('fastify.extism', () => {
  test('has the plugins by their names', async () => {
    build({}, { plugins: { many, other: { source: many, config: { message: 'hello' } } } })
    await app.ready()
    expect(app.extism.names).toEqual(['many', 'other'])
    const { extism } = app
    expect((await extism.plugin('many').call('echo', 'x')).text()).toBe('x')
    expect((await extism.plugin('other').call('read_config', 'message')).text()).toBe('hello')
    expect(extism.plugin('many').stats().calls.succeeded).toBe(1)
    expect(() => extism.plugin('none')).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('"many"') }))
  })

  test('passes its store to plugins without one', async () => {
    const store = new MemoryStore([['key', 'the app\'s'], ['mine:key', 'mine']])
    build({}, { plugins: { many, own: { source: many, store: { store, prefix: 'mine:' } } }, store })
    await app.ready()
    expect((await app.extism.plugin('many').call('read_store', 'key')).text()).toBe('the app\'s')
    expect((await app.extism.plugin('own').call('read_store', 'key')).text()).toBe('mine')
  })

  test('closes with the app, except for plugins passed as a Plugin', async () => {
    const given = await createPlugin(many)
    build({}, { plugins: { many, given } })
    await app.ready()
    const opened = app.extism.plugin('many')
    await app.close()
    await expect(opened.call('echo', 'x')).rejects.toMatchObject({ code: 'CLOSED' })
    expect((await given.call('echo', 'x')).text()).toBe('x')
    await given.close()
  })

  test('belongs to its scope, and is visible in nested scopes', async () => {
    app = Fastify()
    const answers = {}
    for (const name of ['one', 'two']) {
      app.register(async (scope) => {
        await scope.register(extismHost, { plugins: { [name]: many }, routes: [{ url: '/echo', plugin: name, function: 'echo' }] })
        scope.register(async (below) => { answers[name] = below.extism.names })
      }, { prefix: `/${name}` })
    }
    await app.ready()
    expect(answers).toEqual({ one: ['one'], two: ['two'] })
    expect(app.hasDecorator('extism')).toBe(false)
    expect((await post('/one/echo', '1')).body + (await post('/two/echo', '2')).body).toBe('12')
  })

  test('of a nested scope hides the outer one', async () => {
    build()
    app.register(async (scope) => {
      await scope.register(extismHost, { plugins: { inner: many } })
      scope.get('/inner', async () => scope.extism.names)
    })
    app.get('/outer', async () => app.extism.names)
    expect((await app.inject('/inner')).json()).toEqual(['inner'])
    expect((await app.inject('/outer')).json()).toEqual(['many'])
  })

  test('serves running requests while the app closes', async () => {
    build()
    let begun
    const beginning = new Promise((resolve) => { begun = resolve })
    app.get('/late', async (request, reply) => {
      // Or closing waits until the client has no more use for its connection.
      reply.header('connection', 'close')
      begun()
      await new Promise((resolve) => setTimeout(resolve, 50))
      return (await app.extism.plugin('many').call('echo', 'in time')).text()
    })
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    const late = fetch(`${url}/late`).then((response) => response.text())
    await beginning
    await app.close()
    expect(await late).toBe('in time')
  })

  test('can be imported from ECMAScript modules', async () => {
    const { runNode } = require('./support/processes.js')
    const { output } = await runNode(['--input-type=module', '-e', `
      import byDefault, { extismHost } from 'extism-host/fastify'
      console.log(typeof byDefault, byDefault === extismHost)`])
    expect(output).toBe('function true\n')
  })

  test('is there once: a second registration in the same scope is an error', async () => {
    build()
    app.register(extismHost, { plugins: { many } })
    await expect(app.ready()).rejects.toMatchObject({ code: 'ALREADY_REGISTERED', message: expect.stringContaining('nested scope') })
  })
})

describe('the app does not start', () => {
  const route = { url: '/', plugin: 'many', function: 'echo' }
  test.each([
    ['without plugins', { plugins: undefined }, /plugins must be an object of plugins by name/],
    ['with no plugins', { plugins: {} }, /plugins must be an object of plugins by name/],
    ['with a plugin that is not a source', { plugins: { many: 42 } }, /plugin "many" must be a Plugin, a source, or an object with a "source", not a number/],
    ['with a plugin without a source', { plugins: { many: { useWasi: true } } }, /plugin "many" must be .*"source"/],
    ['with an unknown option', { store_: 1 }, /extism-host\/fastify has no "store_"; it takes plugins, routes/],
    ['with an unknown option of a plugin', { plugins: { many: { source: 'x.wasm', wasi_: 1 } } }, /plugin "many": .*has no "wasi_"/],
    ['with a missing file', { plugins: { many: '/no/such.wasm' } }, /plugin "many": cannot read "\/no\/such.wasm"/],
    ['with routes that are not an array', { routes: {} }, /routes must be an array/],
    ['with a route without a plugin', { routes: [{ url: '/', function: 'echo' }] }, /routes\[0\]\.plugin must be a non-empty string/],
    ['with a route of another plugin', { routes: [{ ...route, plugin: 'other' }] }, /routes\[0\] names plugin "other", but there are only "many"/],
    ['with a route of a missing function', { routes: [route, { ...route, url: '/2', function: 'none' }] }, /plugin "many": it has no function "none"/],
    ['with a route with an unknown mode', { routes: [{ ...route, mode: 'json' }] }, /routes\[0\]\.mode must be "raw" or "http", not "json"/],
    ['with a route with a time limit of 0', { routes: [{ ...route, timeoutMs: 0 }] }, /routes\[0\]\.timeoutMs must be a whole number from 1 to 4294967295, not 0/],
    ['with a route with an invalid content type', { routes: [{ ...route, contentType: 'text/html\r\nx: y' }] }, /routes\[0\]\.contentType must be a type such as/]
  ])('%s', async (name, options, message) => {
    build({}, options)
    await expect(app.ready()).rejects.toThrow(message)
  })

  test('and closes the plugins that it has opened, if one cannot be opened', async () => {
    const { Plugin } = require('..')
    const close = jest.spyOn(Plugin.prototype, 'close')
    build({}, { plugins: { many, missing: '/no/such.wasm' } })
    await expect(app.ready()).rejects.toMatchObject({ code: 'FILE_NOT_FOUND' })
    expect(close).toHaveBeenCalledTimes(1)
    close.mockRestore()
  })
})
