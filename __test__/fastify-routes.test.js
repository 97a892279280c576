'use strict'

// What the routes of plugins take from Fastify, and how its other plugins get on with ours.

const { spawn } = require('node:child_process')
const { mkdtempSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const Fastify = require('fastify')
const { Counter, Registry } = require('prom-client')
const extismHost = require('extism-host/fastify')
const { guest } = require('./support/guest.js')
const { ROOT } = require('./support/processes.js')

let many
let app

beforeAll(async () => { many = await guest('many') })
afterEach(async () => { await app?.close() })

/** An app with these plugins of Fastify and one route of the function `echo`, or several routes. */
async function build (route, options = {}, fastifyPlugins = []) {
  app = Fastify()
  for (const [plugin, settings] of fastifyPlugins) await app.register(plugin, settings)
  const routes = [route ?? {}].flat().map((one) => ({ url: '/echo', plugin: 'many', function: 'echo', ...one }))
  app.register(extismHost, { plugins: { many }, routes, ...options })
  await app.ready()
}

const post = (payload, headers, url = '/echo') => app.inject({ method: 'POST', url, payload, headers })

describe('a route takes the options of Fastify', () => {
  test('hooks and a configuration, which they see', async () => {
    const seen = []
    const hook = (name) => async (request) => { seen.push([name, request.routeOptions.config.role]) }
    await build({ config: { role: 'admin' }, onRequest: hook('onRequest'), preHandler: [hook('preHandler'), hook('again')], onResponse: hook('onResponse') })
    expect((await post('hello')).body).toBe('hello')
    expect(seen).toEqual(['onRequest', 'preHandler', 'again', 'onResponse'].map((name) => [name, 'admin']))
  })

  test('a hook that refuses a request before the plugin is called', async () => {
    await build({ onRequest: async () => { throw Object.assign(new Error('who are you?'), { statusCode: 401 }) } })
    const response = await post('hello')
    expect([response.statusCode, response.json().message]).toEqual([401, 'who are you?'])
    expect(app.extism.plugin('many').stats().made).toBe(1)
    expect(app.extism.plugin('many').stats().calls.succeeded).toBe(0)
  })

  test.each(['text/plain', 'application/json'])('a hook that answers in place of the plugin, whose type is %s', async (contentType) => {
    await build({ contentType, preHandler: async (request, reply) => reply.send({ isCached: true }) })
    const response = await post('hello')
    expect([response.statusCode, response.json()]).toEqual([200, { isCached: true }])
  })

  test('an error handler, constraints and a level of its log', async () => {
    await build({
      function: 'trap',
      constraints: { host: 'plugins.example' },
      logLevel: 'silent',
      errorHandler: (error, request, reply) => reply.code(error.statusCode).send(`it is ${error.code}`)
    })
    expect((await post('x')).statusCode).toBe(404)
    const response = await post('x', { host: 'plugins.example' })
    expect([response.statusCode, response.body]).toEqual([500, 'it is TRAP'])
  })

  test.each([
    ['an option that there is not', { prehandler: () => {} }, /routes\[0\] has no "prehandler"; it takes .*preHandler/],
    ['a handler, which is the plugin', { handler: () => {} }, /routes\[0\] has no "handler"/],
    ['a hook that is none', { preHandler: 5 }, /preHandler/],
    ['a status that is not an error', { errors: { PLUGIN_ERROR: 200 } }, /routes\[0\]\.errors\.PLUGIN_ERROR must be a whole number from 400 to 599/],
    ['a code that stays hidden', { errors: { TRAP: 422 } }, /routes\[0\]\.errors has no "TRAP"; it takes PLUGIN_ERROR/]
  ])('and the app does not start with %s', async (_, route, message) => {
    await expect(build(route)).rejects.toThrow(message)
  })
})

describe('schema.body', () => {
  const body = { type: 'object', required: ['name'], additionalProperties: false, properties: { name: { type: 'string' }, times: { type: 'integer', default: 1 } } }

  test('refuses a body before the plugin is called', async () => {
    await build({ schema: { body } })
    for (const [payload, statusCode, code] of [
      [{ times: 5 }, 400, 'FST_ERR_VALIDATION'],
      [undefined, 400, 'FST_ERR_VALIDATION'],
      [{ name: 'Jane', times: 'often' }, 400, 'FST_ERR_VALIDATION']
    ]) expect((await post(payload)).json()).toMatchObject({ statusCode, code })
    expect((await post('{', { 'content-type': 'application/json' })).statusCode).toBe(400)
    expect((await post('<name/>', { 'content-type': 'text/xml' })).json()).toMatchObject({ statusCode: 415, code: 'FST_ERR_CTP_INVALID_MEDIA_TYPE' })
    expect(app.extism.plugin('many').stats().calls).toEqual({ succeeded: 0, failed: {} })
  })

  test('hands over what was validated, as JSON', async () => {
    await build({ schema: { body } })
    // Two parsers may read the first name, or the last one.
    const response = await post('{ "name": "Joe", "name": "Jané", "role": "admin", "times": "2" }', { 'content-type': 'application/json; charset=utf-8' })
    expect([response.statusCode, response.body]).toEqual([200, '{"name":"Jané","times":2}'])
    expect((await post({ name: 'Jane' })).body).toBe('{"name":"Jane","times":1}')
  })

  test('may be that of a text, or of JSON that is a text', async () => {
    await build({ schema: { body: { type: 'string', maxLength: 5 } } })
    expect((await post('hello', { 'content-type': 'text/plain' })).body).toBe('hello')
    expect((await post('"hello"', { 'content-type': 'application/json' })).body).toBe('"hello"')
    expect((await post('hello!', { 'content-type': 'text/plain' })).statusCode).toBe(400)
  })

  test('takes the parsers of the app, and leaves other routes their bytes', async () => {
    await build([{ schema: { body } }, { url: '/bytes' }], {}, [[Object.assign(async (app) => {
      app.addContentTypeParser('text/name', { parseAs: 'string' }, async (request, name) => ({ name }))
    }, { [Symbol.for('skip-override')]: true })]])
    expect((await post('Jane', { 'content-type': 'text/name' })).body).toBe('{"name":"Jane","times":1}')
    expect((await post('{', { 'content-type': 'application/json' }, '/bytes')).body).toBe('{')
  })

  test('is also checked in the mode http', async () => {
    await build({ mode: 'http', schema: { body } })
    // The guest's answer is its input, which is no answer.
    expect((await post({ name: 'Jane' })).json()).toMatchObject({ statusCode: 502, code: 'BAD_PLUGIN_RESPONSE' })
    expect((await post({})).statusCode).toBe(400)
  })
})

describe('errors', () => {
  test('give a PLUGIN_ERROR the status of the route, and the client its message', async () => {
    await build([{ url: '/told', function: 'fail', errors: { PLUGIN_ERROR: 422 } }, { url: '/hidden', function: 'fail' }])
    expect((await post('the name is missing', {}, '/told')).json()).toEqual({
      statusCode: 422, code: 'PLUGIN_ERROR', error: 'Unprocessable Entity', message: expect.stringContaining('the name is missing')
    })
    expect((await post('secret', {}, '/hidden')).json()).toEqual({
      statusCode: 500, code: 'PLUGIN_ERROR', error: 'Internal Server Error', message: 'the plugin gave no answer'
    })
  })

  test('hide everything else', async () => {
    await build({ function: 'trap', errors: { PLUGIN_ERROR: 422 } })
    expect((await post('x')).json()).toEqual({ statusCode: 500, code: 'TRAP', error: 'Internal Server Error', message: 'the plugin gave no answer' })
  })

  test('hide what a host function has thrown, even with that code', async () => {
    const thrown = Object.assign(new Error('password: 1234'), { code: 'PLUGIN_ERROR' })
    await build(
      { function: 'read_store', errors: { PLUGIN_ERROR: 422 } },
      { plugins: { many: { source: many, functions: { env: { hostMemoryGet () { throw thrown } } } } } }
    )
    expect((await post('x')).json()).toMatchObject({ statusCode: 500, message: 'the plugin gave no answer' })
  })
})

describe('metrics of a registry of the app', () => {
  test('are there beside its own, without a route', async () => {
    const register = new Registry()
    new Counter({ name: 'visits_total', help: 'Visits', registers: [register] }).inc(3)
    await build({}, { metrics: { register } })
    await post('x')
    const text = await register.metrics()
    expect(text).toContain('visits_total 3')
    expect(text).toContain('extism_plugin_calls_total{plugin="many",function="echo",code="OK"} 1')
    expect(text).toContain('extism_plugin_instances{plugin="many"} 1')
    expect((await app.inject('/metrics')).statusCode).toBe(404)
  })

  test('have a route where one is asked for', async () => {
    const register = new Registry()
    new Counter({ name: 'visits_total', help: 'Visits', registers: [register] }).inc(3)
    await build({}, { metrics: { register, prefix: '/internal/metrics' } })
    expect((await app.inject('/internal/metrics')).body).toContain('visits_total 3')
  })

  test('are gone when the app is closed, so that another one may have it', async () => {
    const register = new Registry()
    for (let times = 0; times < 2; times++) {
      await build({}, { metrics: { register } })
      expect(register.getMetricsAsArray().length).toBeGreaterThan(5)
      await app.close()
      expect(register.getMetricsAsArray()).toEqual([])
    }
  })

  test.each([[5], [{}], ['registry']])('that is %j is refused', async (register) => {
    await expect(build({}, { metrics: { register } })).rejects.toThrow(/metrics\.register must be a Registry of prom-client/)
  })
})

describe('beside other plugins of Fastify', () => {
  const PROBES = ['/health/live', '/health/ready', '/metrics']

  test('a global rate limit counts calls, and lets probes pass', async () => {
    await build({}, { health: true, metrics: true }, [[require('@fastify/rate-limit'), { max: 2, timeWindow: 60_000 }]])
    const statuses = []
    for (let times = 0; times < 3; times++) statuses.push((await post('x')).statusCode)
    expect(statuses).toEqual([200, 200, 429])
    for (const url of PROBES) {
      for (let times = 0; times < 4; times++) expect((await app.inject(url)).statusCode).toBe(200)
    }
  })

  test('a route has a rate limit of its own, and so have probes if they are to', async () => {
    const limited = { rateLimit: { max: 1, timeWindow: 60_000 } }
    await build([{ config: limited }, { url: '/other' }], { health: { config: limited } }, [[require('@fastify/rate-limit'), { global: false }]])
    const statusOf = async (request) => (await request).statusCode
    expect([await statusOf(post('x')), await statusOf(post('x'))]).toEqual([200, 429])
    expect([await statusOf(post('x', {}, '/other')), await statusOf(post('x', {}, '/other'))]).toEqual([200, 200])
    expect([await statusOf(app.inject('/health/live')), await statusOf(app.inject('/health/live'))]).toEqual([200, 429])
  })

  test('a hook of the app knows probes by their configuration', async () => {
    const isOpen = async (request) => {
      if (!request.routeOptions.config.isPublic) throw Object.assign(new Error('no'), { statusCode: 401 })
    }
    const hook = Object.assign(async (app) => { app.addHook('onRequest', isOpen) }, { [Symbol.for('skip-override')]: true })
    await build({}, { health: { config: { isPublic: true } }, metrics: true }, [[hook]])
    expect((await app.inject('/health/live')).statusCode).toBe(200)
    expect((await app.inject('/metrics')).statusCode).toBe(401)
    expect((await post('x')).statusCode).toBe(401)
  })

  test('helmet gives all answers its headers', async () => {
    await build({}, { health: true }, [[require('@fastify/helmet')]])
    expect((await post('x')).headers['x-content-type-options']).toBe('nosniff')
    expect((await app.inject('/health/live')).headers['x-content-type-options']).toBe('nosniff')
  })

  test('cors answers preflight requests, and allows calls of the origin', async () => {
    await build({}, { health: true }, [[require('@fastify/cors'), { origin: 'https://example.com' }]])
    const preflight = await app.inject({ method: 'OPTIONS', url: '/echo', headers: { origin: 'https://example.com', 'access-control-request-method': 'POST' } })
    expect([preflight.statusCode, preflight.headers['access-control-allow-origin']]).toEqual([204, 'https://example.com'])
    const answer = await post('x', { origin: 'https://example.com' })
    expect([answer.body, answer.headers['access-control-allow-origin']]).toEqual(['x', 'https://example.com'])
  })

  test('under pressure calls are refused and the server is not ready, but it lives, and has metrics', async () => {
    await build({}, { health: true, metrics: true }, [[require('@fastify/under-pressure'), { healthCheck: async () => false, healthCheckInterval: 60_000 }]])
    const statuses = async () => Promise.all([post('x'), ...['/health/ready', '/health/live', '/metrics'].map((url) => app.inject(url))].map(async (response) => (await response).statusCode))
    expect(await statuses()).toEqual([503, 503, 200, 200])
    await app.close()
    await build({}, { health: true, metrics: true }, [[require('@fastify/under-pressure'), { healthCheck: async () => true, healthCheckInterval: 60_000 }]])
    expect(await statuses()).toEqual([200, 200, 200, 200])
  })

  test('fastify start runs an app with plugins, and closes it', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'extism-host-start-'))
    try {
      symlinkSync(join(ROOT, 'node_modules'), join(directory, 'node_modules'), 'dir')
      writeFileSync(join(directory, 'many.wasm'), many)
      writeFileSync(join(directory, 'app.js'), `module.exports = async (fastify, options) => {
        fastify.register(require('extism-host/fastify'), { plugins: { many: '${join(directory, 'many.wasm')}' }, routes: [{ url: '/echo', plugin: 'many', function: 'echo' }] })
      }`)
      const child = spawn(process.execPath, [join(ROOT, 'node_modules/fastify-cli/cli.js'), 'start', '--log-level', 'info', '--address', '127.0.0.1', '--port', '0', 'app.js'], { cwd: directory })
      const ended = new Promise((resolve) => child.on('close', (code) => resolve(code)))
      let log = ''
      const url = await new Promise((resolve, reject) => {
        const hear = (chunk) => {
          log += chunk
          const [, url] = /Server listening at (http:[^"]+)/.exec(log) ?? []
          if (url !== undefined) resolve(url)
        }
        child.stdout.on('data', hear)
        child.stderr.on('data', hear)
        ended.then(() => reject(new Error(`it ended before it listened: ${log}`)))
      })
      expect(await (await fetch(`${url}/echo`, { method: 'POST', body: 'Jane' })).text()).toBe('Jane')
      child.kill('SIGTERM')
      expect(await ended).toBe(0)
    } finally {
      rmSync(directory, { recursive: true, maxRetries: 10 })
    }
  }, 60_000)

  test("the API's description has the type of each answer, and its body", async () => {
    const body = { type: 'object', properties: { name: { type: 'string' } } }
    await build([
      { contentType: 'text/plain; charset=utf-8', schema: { body, summary: 'Greet' } },
      { url: '/own', contentType: 'text/html', schema: { response: { 201: { description: 'made', type: 'string' } } } },
      { url: '/any' }
    ], { health: true }, [[require('@fastify/swagger'), { openapi: {} }]])
    const { paths } = app.swagger()
    expect(paths['/echo'].post).toMatchObject({
      summary: 'Greet',
      requestBody: { content: { 'application/json': { schema: body } } },
      responses: { 200: { description: 'The output of echo', content: { 'text/plain': { schema: { type: 'string' } } } } }
    })
    expect(Object.keys(paths['/own'].post.responses)).toEqual(['201'])
    expect(Object.keys(paths)).toEqual(['/echo', '/own', '/any'])
  })
})
