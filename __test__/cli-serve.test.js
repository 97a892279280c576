'use strict'

// `extism-host serve` as a process: what it serves, loads again, and leaves behind.

const { execFileSync, spawn } = require('node:child_process')
const { copyFileSync, mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { Agent, request } = require('node:https')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { assemble, guest } = require('./support/guest.js')
const { ROOT, runNode } = require('./support/processes.js')

const TOKEN = 'a token that nobody can guess'

let directory
let running

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-serve-'))
  running = []
})

afterEach(async () => {
  for (const { child, ended } of running) {
    child.kill('SIGKILL')
    await ended
  }
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

const path = (name) => join(directory, name)

/** Starts the command; resolves when it listens, with its address and what it has logged so far. */
function serve (args, env) {
  const child = spawn(process.execPath, [join(ROOT, 'bin/extism-host.js'), 'serve', ...args], {
    cwd: directory, env: { ...process.env, TOKEN, ...env }
  })
  const ended = new Promise((resolve) => child.on('close', (code, signal) => resolve({ code, signal })))
  const server = { child, ended, log: '' }
  running.push(server)
  return new Promise((resolve, reject) => {
    const hear = (chunk) => {
      server.log += chunk
      const [, url] = /Server listening at (https?:[^"]+)/.exec(server.log) ?? []
      if (url !== undefined) resolve(Object.assign(server, { url }))
    }
    child.stdout.on('data', hear)
    child.stderr.on('data', hear)
    ended.then(() => reject(new Error(`it ended before it listened: ${server.log}`)))
  })
}

async function until (isSo) {
  for (let tries = 0; !await isSo(); tries++) {
    if (tries > 500) throw new Error('it has not come to that in time')
    await sleep(20)
  }
}

/** A plugin that answers with a word. */
async function writePlugin (name, word) {
  writeFileSync(path(name), await assemble(`(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (func (export "answer") (result i32) (local $block i64)
      (local.set $block (call $alloc (i64.const ${word.length})))
      ${[...word].map((letter, i) => `(call $store (i64.add (local.get $block) (i64.const ${i})) (i32.const ${letter.charCodeAt(0)}))`).join('\n')}
      (call $output (local.get $block) (i64.const ${word.length}))
      (i32.const 0)))`))
}

function writeConfig (more = '') {
  writeFileSync(path('extism-host.yaml'), `
server: { port: 0 }
plugins:
  word: { wasm: word.wasm }
  visits: { wasm: ${JSON.stringify(join(ROOT, 'plugins/visits-rust/visits.wasm'))}, store: { prefix: 'visits/', access: write } }
routes:
  - { method: GET, url: /word, plugin: word, function: answer, contentType: text/plain }
  - { url: /visit, plugin: visits, function: visit, contentType: text/plain }
${more}`)
  return ['--config', path('extism-host.yaml')]
}

const get = async (url) => (await fetch(url)).text()

test('one function of a plugin is served at POST /, with health and metrics', async () => {
  const { url, child, ended } = await serve([join(ROOT, 'plugins/visits-go/visits.wasm'), 'visit', '--port', '0'])
  const response = await fetch(url, { method: 'POST', body: 'Jane' })
  // It may not write to the store.
  expect(response.status).toBe(500)
  expect(await response.json()).toMatchObject({ code: 'PLUGIN_ERROR' })
  expect((await fetch(`${url}/health/ready`)).status).toBe(200)
  expect(await get(`${url}/metrics`)).toMatch(/extism_plugin_calls_total\{plugin="plugin",function="visit",code="PLUGIN_ERROR"\} 1/)
  expect((await fetch(`${url}/admin/plugins/plugin/reload`, { method: 'POST' })).status).toBe(404)
  child.kill('SIGTERM')
  expect(await ended).toEqual({ code: 0, signal: null })
})

test('a configuration has several plugins, one store, metrics, and routes for who has the token', async () => {
  await writePlugin('word.wasm', 'one')
  const { url } = await serve(writeConfig('health: true\nmetrics: true\nadmin: { token: "$' + '{TOKEN}" }\n'))
  expect(await get(`${url}/word`)).toBe('one')
  expect(await (await fetch(`${url}/visit`, { method: 'POST', body: 'Jane' })).text()).toBe('visit 1 of Jane, after nobody')
  const metrics = await get(`${url}/metrics`)
  expect(metrics).toMatch(/plugin="word",function="answer",code="OK"\} 1/)
  const headers = { authorization: `Bearer ${TOKEN}` }
  expect((await fetch(`${url}/admin/store/visits%2Flast`)).status).toBe(401)
  expect(await (await fetch(`${url}/admin/store/visits%2Flast`, { headers })).text()).toBe('Jane')
  await writePlugin('word.wasm', 'two')
  expect((await fetch(`${url}/admin/plugins/word/reload`, { method: 'POST', headers })).status).toBe(204)
  expect(await get(`${url}/word`)).toBe('two')
})

test('SIGHUP loads all plugins again; a broken one stays as it is, and it is said why', async () => {
  await writePlugin('word.wasm', 'one')
  const server = await serve(writeConfig())
  await writePlugin('word.wasm', 'two')
  server.child.kill('SIGHUP')
  await until(async () => await get(`${server.url}/word`) === 'two')
  writeFileSync(path('word.wasm'), 'broken')
  server.child.kill('SIGHUP')
  await until(() => server.log.includes('stays as it is'))
  expect(server.log).toMatch(/plugin \\"word\\" stays as it is, as the new version was refused: .*is not WebAssembly/)
  expect(await get(`${server.url}/word`)).toBe('two')
})

test('with --watch a plugin is loaded again when its file has changed, or was replaced', async () => {
  await writePlugin('word.wasm', 'one')
  const { url } = await serve([...writeConfig(), '--watch'])
  await writePlugin('word.wasm', 'two')
  await until(async () => await get(`${url}/word`) === 'two')
  await writePlugin('next.wasm', 'three')
  copyFileSync(path('next.wasm'), path('word.wasm'))
  await until(async () => await get(`${url}/word`) === 'three')
})

test('SIGTERM lets a request that is under way end', async () => {
  writeFileSync(path('word.wasm'), await assemble(`(module
    (func (export "answer") (result i32) (local $i i64)
      (loop $again
        (local.set $i (i64.add (local.get $i) (i64.const 1)))
        (br_if $again (i64.lt_u (local.get $i) (i64.const 1500000000))))
      (i32.const 0)))`))
  const { url, child, ended } = await serve(writeConfig('metrics: true\n'))
  const answer = fetch(`${url}/word`)
  await until(async () => /extism_plugin_busy_instances\{plugin="word"\} 1/.test(await get(`${url}/metrics`)))
  child.kill('SIGTERM')
  expect((await answer).status).toBe(200)
  expect(await ended).toEqual({ code: 0, signal: null })
})

test.each(['trap', 'divide_by_zero', 'recurse'])('a plugin that does what WebAssembly forbids ends its call only: %s', async (functionName) => {
  writeFileSync(path('many.wasm'), await guest('many'))
  const { url, child, ended } = await serve([path('many.wasm'), functionName, '--port', '0'])
  for (let round = 0; round < 2; round++) {
    const response = await fetch(url, { method: 'POST', body: 'x' })
    expect([response.status, (await response.json()).code]).toEqual([500, 'TRAP'])
  }
  child.kill()
  expect(await ended).toEqual({ code: 0, signal: null })
})

test('TLS, with a certificate of one\'s own', async () => {
  await writePlugin('word.wasm', 'one')
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
    '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', path('key.pem'), '-out', path('cert.pem')], { stdio: 'ignore' })
  const config = writeConfig()
  const { readFileSync } = require('node:fs')
  writeFileSync(config[1], readFileSync(config[1], 'utf8').replace('{ port: 0 }', '{ port: 0, tls: { cert: cert.pem, key: key.pem } }'))
  const { url } = await serve(config)
  const agent = new Agent({ ca: readFileSync(path('cert.pem')) })
  const answer = await new Promise((resolve, reject) => {
    request(`${url}/word`, { agent }, (response) => {
      response.setEncoding('utf8').on('data', resolve)
    }).on('error', reject).end()
  })
  agent.destroy()
  expect(answer).toBe('one')
})

test('what is wrong with a configuration ends it with 2, and what is wrong with a plugin with 1, in one line', async () => {
  await writePlugin('word.wasm', 'one')
  const [, config] = writeConfig('metrcis: true\n')
  const wrong = await runNode(['bin/extism-host.js', 'serve', '--config', config])
  expect(wrong).toMatchObject({ code: 2, output: '' })
  expect(wrong.errors).toBe(`extism-host: ${config}:9: there is no "metrcis"; did you mean "metrics"?\n`)
  const { port } = new URL((await serve(writeConfig())).url)
  const taken = await runNode(['bin/extism-host.js', 'serve', '--config', writeConfig()[1], '--port', port])
  expect(taken.code).toBe(1)
  expect(taken.errors).toMatch(/^extism-host: EADDRINUSE: .*\n$/)
  rmSync(path('word.wasm'))
  const missing = await runNode(['bin/extism-host.js', 'serve', '--config', writeConfig()[1]])
  expect(missing).toMatchObject({ code: 1 })
  expect(missing.errors).toMatch(/^extism-host: FILE_NOT_FOUND: plugin "word": .*\n$/)
})
