'use strict'

// How servers end: `extism-host serve` and `server.js` lose no request, and wait for nobody who sends none.

const { execFileSync, spawn } = require('node:child_process')
const { once } = require('node:events')
const { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
const { Agent, get } = require('node:http')
const { connect } = require('node:net')
const { connect: connectTls } = require('node:tls')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { assemble } = require('./support/guest.js')
const { ROOT } = require('./support/processes.js')

const LARGE = 12 * 1024 * 1024
const DRAIN_MS = 500

let directory
let running
let sockets

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-shutdown-'))
  running = []
  sockets = []
  writeFileSync(join(directory, 'plugin.wasm'), await assemble(`(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (func (export "large") (call $output (call $alloc (i64.const ${LARGE})) (i64.const ${LARGE})))
    (func (export "forever") (loop $again (br $again)))
    (func (export "small") (call $output (call $alloc (i64.const 2)) (i64.const 2))))`))
  writeFileSync(join(directory, 'config.yaml'), `
server: { port: 0, drainMs: ${DRAIN_MS}, shutdownTimeoutMs: 8000 }
plugins: { plugin: { wasm: plugin.wasm } }
routes:
  - { method: [GET, POST], url: /, plugin: plugin, function: small }
  - { method: GET, url: /large, plugin: plugin, function: large }
health: true
`)
})

afterEach(async () => {
  sockets.forEach((socket) => socket.destroy())
  for (const { child, ended, log, hasEnded } of running) {
    child.kill('SIGKILL')
    // Behind npx it is not the child itself.
    if (!hasEnded()) process.kill(/"pid":(\d+)/.exec(log)?.[1] ?? child.pid, 'SIGKILL')
    await ended
  }
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

function changeConfig (from, to) {
  const config = join(directory, 'config.yaml')
  writeFileSync(config, readFileSync(config, 'utf8').replace(from, to))
}

/** Starts a program; resolves when it listens. */
async function start (command, args, env, cwd = ROOT) {
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env } })
  let hasEnded = false
  child.on('close', () => { hasEnded = true })
  const ended = once(child, 'close').then(([code, signal]) => ({ code, signal }))
  const server = { child, ended, log: '', hasEnded: () => hasEnded }
  running.push(server)
  server.url = await new Promise((resolve, reject) => {
    const hear = (chunk) => {
      server.log += chunk
      const [, url] = /Server listening at (https?:[^"]+)/.exec(server.log) ?? []
      if (url !== undefined) resolve(url)
    }
    child.stdout.on('data', hear)
    child.stderr.on('data', hear)
    ended.then(() => reject(new Error(`it ended before it listened: ${server.log}`)))
  })
  return server
}

const serve = () => start(process.execPath, ['bin/extism-host.js', 'serve', '--config', join(directory, 'config.yaml')])
const serverJs = (functionName) => start(process.execPath, ['server.js'], {
  PORT: '0', HOST: '127.0.0.1', DRAIN_MS: String(DRAIN_MS), PLUGIN_WASM: join(directory, 'plugin.wasm'), PLUGIN_FUNCTION: functionName
})

/** A connection that sends these bytes and nothing more. */
async function send ({ url }, text, address = '127.0.0.1') {
  const { port } = new URL(url)
  const socket = connect(port, address)
  sockets.push(socket)
  socket.on('error', () => {})
  await once(socket, 'connect')
  if (text !== '') socket.write(text)
  return socket
}

/** Ends the server while it sends a large response that is read slowly: the response is complete, and the server ends. */
async function expectWholeResponse (server, socket) {
  await once(socket, 'readable')
  server.child.kill('SIGTERM')
  await sleep(2 * DRAIN_MS)
  let received = 0
  for await (const chunk of socket) {
    received += chunk.length
    if (received < LARGE / 2) await sleep(5)
  }
  expect(received).toBeGreaterThan(LARGE)
  expect(await server.ended).toEqual({ code: 0, signal: null })
}

/** Gets a URL; resolves to its status and headers. */
function request (url, options) {
  return new Promise((resolve, reject) => {
    get(url, options, (response) => {
      response.resume().on('end', () => resolve({ status: response.statusCode, headers: response.headers })).on('error', reject)
    }).on('error', reject)
  })
}

describe.each([['extism-host serve', serve], ['server.js', () => serverJs('small')]])('%s', (_, start) => {
  test.each([
    ['nothing', ''],
    ['half the head of a request', 'POST / HTTP/1.1\r\nhost: loc'],
    ['half the body of a request', 'POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n12345'],
    ['nothing after its answer', 'POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n']
  ])('drops a connection that has sent %s', async (_, text) => {
    const server = await start()
    const socket = await send(server, text)
    socket.resume()
    await sleep(100)
    server.child.kill('SIGTERM')
    expect(await server.ended).toEqual({ code: 0, signal: null })
  })

  test('exits although nobody reads its log, and reports dropped lines once somebody does', async () => {
    const server = await start()
    server.child.stdout.pause()
    // Twice what the server keeps for a reader, and more than a pipe holds.
    const url = `${server.url}/?${'x'.repeat(2_000)}`
    for (let sent = 0; sent < 1_000; sent += 20) {
      await Promise.all(Array.from({ length: 20 }, () => request(url, { agent: false })))
    }
    const unread = await start()
    unread.child.stdout.pause()
    for (let sent = 0; sent < 400; sent++) await request(unread.url)
    unread.child.kill('SIGTERM')
    expect((await once(unread.child, 'exit'))[0]).toBe(0)
    server.child.stdout.resume()
    while (!/dropped \d+ log lines: nobody reads/.test(server.log)) await once(server.child.stdout, 'data')
    server.child.kill('SIGTERM')
    expect(await server.ended).toEqual({ code: 0, signal: null })
  }, 60_000)
})

test.each([
  ['extism-host serve', serve, 'GET /large'],
  ['server.js', () => serverJs('large'), 'POST /']
])('%s sends a response to its last byte, however slowly it is read', async (_, start, line) => {
  const server = await start()
  const socket = await send(server, `${line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n`)
  await expectWholeResponse(server, socket)
})

test('server.js sends a response to its last byte on each address of its host name', async () => {
  const lookup = join(directory, 'lookup.js')
  writeFileSync(lookup, `
const dns = require('node:dns')
const { lookup } = dns
const addresses = ['127.0.0.1', '127.0.0.2'].map((address) => ({ address, family: 4 }))
// From Node 22 on, a server looks up the addresses that it listens on in the same way.
dns.lookup = (name, options, callback) => options.all && name === 'localhost' ? callback(null, addresses) : lookup(name, options, callback)
`)
  const server = await start(process.execPath, ['--require', lookup, 'server.js'], {
    PORT: '0', HOST: 'localhost', DRAIN_MS: String(DRAIN_MS), PLUGIN_WASM: join(directory, 'plugin.wasm'), PLUGIN_FUNCTION: 'large'
  })
  while (!server.log.includes('//127.0.0.2')) await once(server.child.stdout, 'data')
  const text = 'POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n'
  const read = await send(server, text, '127.0.0.2')
  const silent = await send(server, text, '127.0.0.2')
  silent.resume()
  await expectWholeResponse(server, read)
})

test('TLS: it drops a connection before its handshake, and sends a response to its last byte', async () => {
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', '/CN=localhost',
    '-keyout', join(directory, 'key.pem'), '-out', join(directory, 'cert.pem')], { stdio: 'ignore' })
  changeConfig('port: 0', 'port: 0, tls: { cert: cert.pem, key: key.pem }')
  const server = await serve()
  await send(server, '')
  const socket = connectTls({ port: new URL(server.url).port, host: '127.0.0.1', rejectUnauthorized: false })
  sockets.push(socket)
  socket.write('GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n')
  await once(socket, 'readable')
  server.child.kill('SIGTERM')
  await sleep(2 * DRAIN_MS)
  let received = 0
  for await (const chunk of socket) received += chunk.length
  expect(received).toBeGreaterThan(LARGE)
  expect(await server.ended).toEqual({ code: 0, signal: null })
})

test('on SIGTERM, calls that do not end are interrupted after shutdownTimeoutMs', async () => {
  changeConfig('shutdownTimeoutMs: 8000', 'shutdownTimeoutMs: 300')
  changeConfig('health: true', '  - { method: GET, url: /forever, plugin: plugin, function: forever }\nhealth: true')
  const server = await serve()
  const forever = request(`${server.url}/forever`)
  await sleep(300)
  server.child.kill('SIGTERM')
  expect(await forever).toMatchObject({ status: 503 })
  expect(await server.ended).toEqual({ code: 0, signal: null })
})

test('on SIGTERM it becomes unready, and responds on all connections, old and new, until they are closed', async () => {
  const server = await serve()
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  expect(await request(server.url, { agent })).toMatchObject({ status: 200, headers: { connection: 'keep-alive' } })
  expect(await request(`${server.url}/health/ready`)).toMatchObject({ status: 200 })
  server.child.kill('SIGTERM')
  while ((await request(`${server.url}/health/ready`)).status === 200) await sleep(5)
  expect(await request(server.url, { agent })).toMatchObject({ status: 200, headers: { connection: 'close' } })
  expect(await request(`${server.url}/health/live`)).toMatchObject({ status: 200, headers: { connection: 'close' } })
  expect(await server.ended).toEqual({ code: 0, signal: null })
  agent.destroy()
})

test('clients that keep their connections lose no request, and are asked to close them', async () => {
  // Long enough for each client to send a request meanwhile, on a busy machine too.
  changeConfig(`drainMs: ${DRAIN_MS}`, 'drainMs: 3000')
  const server = await serve()
  const statuses = {}
  const clients = Array.from({ length: 16 }, async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    for (let isOpen = true; isOpen;) {
      const { status, headers } = await request(server.url, { agent })
      statuses[status] = (statuses[status] ?? 0) + 1
      isOpen = headers.connection === 'keep-alive'
    }
    agent.destroy()
  })
  await sleep(300)
  server.child.kill('SIGTERM')
  await Promise.all(clients)
  expect(Object.keys(statuses)).toEqual(['200'])
  expect(statuses[200]).toBeGreaterThan(clients.length)
  expect(await server.ended).toEqual({ code: 0, signal: null })
})

test('the server exits when its npx is killed', async () => {
  mkdirSync(join(directory, 'node_modules/.bin'), { recursive: true })
  symlinkSync(ROOT, join(directory, 'node_modules/extism-host'))
  symlinkSync('../extism-host/bin/extism-host.js', join(directory, 'node_modules/.bin/extism-host'))
  writeFileSync(join(directory, 'package.json'), '{ "name": "app", "dependencies": { "extism-host": "*" } }')
  const server = await start('npx', ['--no-install', 'extism-host', 'serve', '--config', 'config.yaml'], {}, directory)
  expect((await request(server.url)).status).toBe(200)
  server.child.kill('SIGTERM')
  // The server holds the pipes open, so this waits for it.
  await server.ended
  await expect(request(server.url)).rejects.toMatchObject({ code: 'ECONNREFUSED' })
})
