'use strict'

// The programs of examples/ are run as they are, and asked over HTTP.

const { execFileSync } = require('node:child_process')
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { ROOT, startServer } = require('./support/processes.js')
const { freePort, hasRedis, startRedis } = require('./support/redis.js')

let directory
let server

beforeAll(() => { directory = mkdtempSync(join(tmpdir(), 'extism-host-')) })
afterAll(() => rmSync(directory, { recursive: true, maxRetries: 10 }))
afterEach(async () => {
  server.child.kill()
  await server.ended
})

async function start (name, env) {
  server = await startServer(env, `examples/${name}.js`)
}

/** Starts an example with its plugin, which is made as the example says. */
async function startWithPlugin (name) {
  const wasm = join(directory, `${name}.wasm`)
  execFileSync(process.execPath, [join(ROOT, 'node_modules/.bin/wat2wasm'), `examples/${name}.wat`, '-o', wasm], { cwd: ROOT })
  await start(name, { PLUGIN_WASM: wasm })
}

const ask = (method, path, { body, headers } = {}) => fetch(server.url + path, { method, body, headers })
const textOf = async (...request) => (await ask(...request)).text()

test('article.js serves the article\'s request', async () => {
  await start('article')
  const response = await ask('POST', '/', { body: 'Jane Doe' })
  expect(response.headers.get('content-type')).toBe('text/plain; charset=utf-8')
  expect(await response.text()).toBe('👋 Hello Jane Doe\nkey: hello, value: 👋 Hello World 🌍\nkey: message, value: I 💜 Extism 😍')
})

test('many-plugins.js serves two plugins, alone and combined, with health, metrics and reloads', async () => {
  const headers = { authorization: 'Bearer a token that nobody can guess' }
  await start('many-plugins', { ADMIN_TOKEN: 'a token that nobody can guess' })
  const hello = '👋 Hello Jane\nkey: hello, value: good morning\nkey: message, value: from the store'
  expect(await textOf('POST', '/hello', { body: 'Jane' })).toBe(hello)
  expect(await textOf('POST', '/visits', { body: 'Jane' })).toBe('visit 1 of Jane, after nobody')
  expect(await textOf('GET', '/both/Jane')).toBe(`${hello}\nvisit 2 of Jane, after Jane`)
  expect((await ask('POST', '/visits', { body: 'x'.repeat(1_001) })).status).toBe(413)
  expect(await (await ask('GET', '/health/ready')).json()).toEqual({ status: 'ok', plugins: 'ok', store: 'ok' })
  expect((await ask('POST', '/admin/plugins/visits/reload', { headers })).status).toBe(204)
  expect(await textOf('POST', '/visits', { body: 'Jane' })).toBe('visit 3 of Jane, after Jane')
  expect(await textOf('GET', '/admin/store/visits:last', { headers })).toBe('Jane')
  expect(await textOf('GET', '/metrics')).toContain('extism_plugin_calls_total{plugin="visits",function="visit",code="OK"} 3\n')
})

test('many-plugins.js has no admin routes without a token', async () => {
  await start('many-plugins')
  expect((await ask('GET', '/admin/store')).status).toBe(404)
})

test('http-handler.js serves what its plugin says', async () => {
  await startWithPlugin('http-handler')
  const page = await ask('GET', '/anything')
  expect([page.status, await page.text(), page.headers.get('content-type')]).toEqual([200, '<h1>Hello</h1>', 'text/html; charset=utf-8'])
  expect(page.headers.getSetCookie()).toEqual(['seen=yes; Path=/', 'theme=dark'])
  const refused = await ask('DELETE', '/anything')
  expect([refused.status, await refused.text(), refused.headers.get('allow')]).toEqual([405, 'only GET', 'GET'])
})

test('host-functions.js asks JavaScript and Rust', async () => {
  await startWithPlugin('host-functions')
  expect(await textOf('GET', '/', { headers: { 'x-user': 'jane' } })).toBe('👋 Jane')
  expect(await textOf('GET', '/')).toBe('who are you?')
})

if (hasRedis()) {
  test('two-servers.js: each continues where the other stopped', async () => {
    const redis = await startRedis()
    try {
      const ports = [await freePort(), await freePort()]
      await start('two-servers', { REDIS_URL: redis.url, PORTS: ports.join() })
      const answers = (port) => fetch(`http://localhost:${port}/health/live`).then(() => true, () => false)
      while (!await answers(ports[1])) await sleep(10)
      const visit = async (port, name) => (await fetch(`http://localhost:${port}/visits`, { method: 'POST', body: name })).text()
      expect(await visit(ports[0], 'Jane')).toBe('visit 1 of Jane, after nobody')
      expect(await visit(ports[1], 'Joe')).toBe('visit 1 of Joe, after Jane')
      expect(await visit(ports[0], 'Joe')).toBe('visit 2 of Joe, after Joe')
    } finally {
      await redis.stop()
    }
  })
}
