'use strict'

// `extism-host serve` as a process: what it serves, loads again, and leaves behind.

const { execFileSync, spawn } = require('node:child_process')
const { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
const { createServer } = require('node:http')
const { Agent, request } = require('node:https')
const { connect } = require('node:tls')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { assemble, guest } = require('./support/guest.js')
const { ROOT, runNode } = require('./support/processes.js')
const { until } = require('./support/until.js')

const PORT_0 = 'server: { port: 0 }\n'
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
  const { url, child, ended } = await serve([join(ROOT, 'plugins/visits-go/visits.wasm'), 'visit', '--wasi', '--port', '0'])
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

describe('one function takes the flags of call', () => {
  const serveAndPost = async (args, body) => fetch((await serve(args)).url, { method: 'POST', body })

  test('a store, and the type of the answers', async () => {
    const { url } = await serve([join(ROOT, 'plugins/visits-rust/visits.wasm'), 'visit', '--port', '0', '--store', `redb:${path('store')}`, '--store-write', '--content-type', 'text/plain; charset=utf-8'])
    await fetch(url, { method: 'POST', body: 'Jane' })
    const response = await fetch(url, { method: 'POST', body: 'Joe' })
    expect(response.headers.get('content-type')).toBe('text/plain; charset=utf-8')
    expect(await response.text()).toBe('visit 1 of Joe, after Jane')
  })

  test('a configuration, and a limit of time', async () => {
    writeFileSync(path('many.wasm'), await guest('many'))
    const flags = ['--port', '0', '--plugin-config', 'color=red', '--timeout', '50', '--memory-max', '100']
    const config = await serveAndPost([path('many.wasm'), 'read_config', ...flags], 'color')
    expect([config.status, await config.text()]).toEqual([200, 'red'])
    expect((await serveAndPost([path('many.wasm'), 'loop_for_ever', ...flags])).status).toBe(504)
  })

  test('hosts that it may send requests to', async () => {
    const server = createServer((request, response) => response.end('hello')).listen(0, '127.0.0.1')
    try {
      await new Promise((resolve) => server.once('listening', resolve))
      writeFileSync(path('http.wasm'), await guest('http'))
      const input = JSON.stringify({ url: `http://127.0.0.1:${server.address().port}/` })
      expect((await serveAndPost([path('http.wasm'), 'body', '--port', '0'], input)).status).toBe(500)
      const flags = ['--allow-host', '127.0.0.1', '--allow-http-response-headers']
      expect(await (await serveAndPost([path('http.wasm'), 'headers', '--port', '0', ...flags], input)).text()).toContain('content-length')
    } finally {
      server.closeAllConnections()
      server.close()
    }
  })

  test('a manifest, which --watch reads again', async () => {
    for (const word of ['one', 'two']) await writePlugin(`${word}.wasm`, word)
    const describe = (word) => writeFileSync(path('plugin.json'), JSON.stringify({ wasm: [{ path: path(`${word}.wasm`) }] }))
    describe('one')
    const { url } = await serve([path('plugin.json'), 'answer', '--port', '0', '--watch'])
    const post = async () => (await fetch(url, { method: 'POST' })).text()
    expect(await post()).toBe('one')
    describe('two')
    await until(async () => await post() === 'two')
    await writePlugin('two.wasm', 'six')
    await until(async () => await post() === 'six')
  })
})

describe('host functions of a configuration', () => {
  const READING = `(module
    (import "extism:host/user" "word" (func $word (result i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (func (export "answer") (result i32) (local $block i64)
      (local.set $block (call $word))
      (call $output (local.get $block) (call $length (local.get $block)))
      (i32.const 0)))`
  const exportWord = (word) => writeFileSync(path('host.mjs'), `let calls = 0\nexport const env = { word: () => '${word}' + ++calls }`)
  const plugin = { wasm: 'reading.wasm', functions: 'host.mjs' }

  beforeEach(async () => writeFileSync(path('reading.wasm'), await assemble(READING)))

  test('are those of the file, which plugins share', async () => {
    exportWord('hello')
    const { url } = await serve(configure({ word: plugin, other: { ...plugin, smoke: { function: 'answer', expect: 'hello1' } } }))
    // The first call of the module's function was the other plugin's.
    expect(await get(`${url}/word`)).toBe('hello2')
  })

  test.each([['SIGHUP', [], (server) => server.child.kill('SIGHUP')], ['--watch', ['--watch'], () => {}]])('%s loads them again when their file has changed', async (_, flags, tell) => {
    exportWord('one')
    const server = await serve([...configure({ word: plugin }), ...flags])
    expect(await get(`${server.url}/word`)).toBe('one1')
    exportWord('two')
    tell(server)
    await until(async () => (await get(`${server.url}/word`)).startsWith('two'))
    writeFileSync(path('host.mjs'), 'throw new Error("no database")')
    tell(server)
    await until(() => server.log.includes('no database'))
    expect(server.log).toMatch(/rejected the new version of plugin \\"word\\", the old one keeps serving: cannot load host functions from .*host.mjs: no database/)
    expect(await get(`${server.url}/word`)).toMatch(/^two/)
    exportWord('three')
    tell(server)
    await until(async () => (await get(`${server.url}/word`)).startsWith('three'))
  })

  test('change with the configuration', async () => {
    exportWord('one')
    writeFileSync(path('other.cjs'), "exports.env = { word: () => 'other' }")
    const server = await serve(configure({ word: plugin }))
    configure({ word: { ...plugin, functions: 'other.cjs' } })
    server.child.kill('SIGHUP')
    await until(async () => await get(`${server.url}/word`) === 'other')
    writeFileSync(path('other.cjs'), "exports.env = { word: () => 'another' }")
    server.child.kill('SIGHUP')
    await until(async () => await get(`${server.url}/word`) === 'another')
  })

  test('that cannot be loaded end the start, in one line', async () => {
    const { code, errors } = await runNode(['bin/extism-host.js', 'serve', ...configure({ word: plugin })])
    expect(code).toBe(1)
    expect(errors).toMatch(/^extism-host: FILE_NOT_FOUND: cannot load host functions from .*host.mjs: .*\n$/)
  })
})

test('routes of a configuration validate bodies, and tell clients errors of the plugin', async () => {
  writeFileSync(path('many.wasm'), await guest('many'))
  const schema = { body: { type: 'object', required: ['name'] } }
  writeFileSync(path('extism-host.yaml'), `${PORT_0}plugins: { many: { wasm: many.wasm } }\nroutes: ${JSON.stringify([
    { url: '/echo', plugin: 'many', function: 'echo', schema }, { url: '/fail', plugin: 'many', function: 'fail', errors: { PLUGIN_ERROR: 422 } }
  ])}\n`)
  const { url } = await serve(['--config', path('extism-host.yaml')])
  const post = (place, body, type = 'application/json') => fetch(url + place, { method: 'POST', body, headers: { 'content-type': type } })
  expect(await (await post('/echo', '{ "name": "Jane" }')).text()).toBe('{"name":"Jane"}')
  expect((await post('/echo', '{}')).status).toBe(400)
  expect(await (await post('/fail', 'no name')).json()).toMatchObject({ statusCode: 422, message: expect.stringContaining('no name') })
})

test('a configured plugin has linked modules, WASI arguments, an environment, its output in the log, and a cache of its own', async () => {
  writeFileSync(path('wasi.wasm'), await guest('wasi'))
  writeFileSync(path('main.wasm'), await assemble(`(module
    (import "side" "write_error" (func $write (result i32)))
    (memory (export "memory") 1)
    (func (export "run") (result i32) (call $write)))`))
  const options = { wasi: { args: ['wasi', '--loud'], env: { NAME: '$' + '{TOKEN}' } }, enableWasiOutput: 'logger', isolation: 'call', snapshot: true, compileCache: { directory: 'cache' } }
  writeFileSync(path('extism-host.yaml'), `server: { port: 0, logLevel: trace }\nplugins: ${JSON.stringify({
    wasi: { wasm: 'wasi.wasm', ...options },
    linked: { wasm: [{ path: 'wasi.wasm', name: 'side' }, { path: 'main.wasm', name: 'main' }], ...options }
  })}\nroutes: ${JSON.stringify([
    ...['arguments', 'environment'].map((name) => ({ url: `/${name}`, plugin: 'wasi', function: name })), { url: '/linked', plugin: 'linked', function: 'run' }
  ])}\n`)
  const server = await serve(['--config', path('extism-host.yaml')])
  const post = async (place, body) => (await fetch(server.url + place, { method: 'POST', body })).text()
  expect(await post('/arguments')).toBe('wasi\0--loud\0')
  expect(await post('/environment')).toBe(`NAME=${TOKEN}\0`)
  await post('/linked', 'from the side')
  await until(() => server.log.includes('from the side'))
  expect(readdirSync(path('cache')).length).toBeGreaterThan(0)
})

test('a plugin may take longer to load than the 10 s of Fastify for a plugin of its own', async () => {
  await writePlugin('word.wasm', 'slow')
  const origin = createServer((request, response) => setTimeout(() => response.end(readFileSync(path('word.wasm'))), 11_000)).listen(0, '127.0.0.1')
  try {
    await new Promise((resolve) => origin.on('listening', resolve))
    const { url } = await serve(configure({ word: { wasm: `http://127.0.0.1:${origin.address().port}/word.wasm` } }))
    expect(await get(`${url}/word`)).toBe('slow')
  } finally {
    origin.close()
  }
}, 90_000)

test('a plugin is uploaded, shown on the API page, and serves after a restart; a broken one is refused', async () => {
  await writePlugin('word.wasm', 'one')
  await writePlugin('new.wasm', 'two')
  const flags = configure({ word: { wasm: 'word.wasm', smoke: ANSWERING } }, `docs: true\nadmin: { token: "${TOKEN}", uploads: { directory: uploads } }\n`)
  const server = await serve(flags)
  const upload = (body, token = TOKEN) => fetch(`${server.url}/admin/plugins/word`, { method: 'POST', body, headers: { authorization: `Bearer ${token}`, 'content-type': 'application/wasm' } })
  expect((await upload(readFileSync(path('new.wasm')))).status).toBe(200)
  expect((await upload('broken')).status).toBe(422)
  expect((await upload(readFileSync(path('word.wasm')), 'a token that somebody guessed')).status).toBe(401)
  expect(await get(`${server.url}/word`)).toBe('two')
  expect((await (await fetch(`${server.url}/docs/json`)).json()).paths['/word'].get.summary).toBe('Run answer of word')
  server.child.kill('SIGHUP')
  await until(() => server.log.includes('has been reloaded'))
  expect(await get(`${server.url}/word`)).toBe('two')
  server.child.kill('SIGTERM')
  await server.ended
  expect(await get(`${(await serve(flags)).url}/word`)).toBe('two')
})

test('a configuration has several plugins, one store, metrics, and admin routes', async () => {
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

test('SIGHUP reloads all plugins; a broken one keeps its old version, and the log says why', async () => {
  await writePlugin('word.wasm', 'one')
  const server = await serve(writeConfig())
  await writePlugin('word.wasm', 'two')
  server.child.kill('SIGHUP')
  await until(async () => await get(`${server.url}/word`) === 'two')
  writeFileSync(path('word.wasm'), 'broken')
  server.child.kill('SIGHUP')
  await until(() => server.log.includes('keeps serving'))
  expect(server.log).toMatch(/rejected the new version of plugin \\"word\\", the old one keeps serving: .*is not WebAssembly/)
  expect(await get(`${server.url}/word`)).toBe('two')
})

const ROUTES = 'routes: [{ method: GET, url: /word, plugin: word, function: answer }]\n'
const ANSWERING = { input: '', function: 'answer' }

/** A configuration whose plugins are files of these names, and more of it. */
function configure (plugins, more = '') {
  writeFileSync(path('extism-host.yaml'), `${PORT_0}plugins: ${JSON.stringify(plugins)}\n${ROUTES}metrics: true\n${more}`)
  return ['--config', path('extism-host.yaml')]
}

const pluginsOf = async (url) => [...(await get(`${url}/metrics`)).matchAll(/extism_plugin_instances\{plugin="(\w+)"\}/g)].map(([, name]) => name)

describe.each([['SIGHUP', [], (server) => server.child.kill('SIGHUP')], ['--watch', ['--watch'], () => {}]])('%s reads the configuration again', (_, flags, tell) => {
  test('and adds, changes and removes plugins', async () => {
    for (const word of ['one', 'two', 'more']) await writePlugin(`${word}.wasm`, word)
    const server = await serve([...configure({ word: { wasm: 'one.wasm' }, old: { wasm: 'more.wasm' } }), ...flags])
    expect(await pluginsOf(server.url)).toEqual(['word', 'old'])
    configure({ word: { wasm: 'two.wasm' }, more: { wasm: 'more.wasm', smoke: ANSWERING } })
    tell(server)
    await until(async () => await get(`${server.url}/word`) === 'two')
    expect(await pluginsOf(server.url)).toEqual(['word', 'more'])
    expect(await get(`${server.url}/metrics`)).toMatch(/calls_total\{plugin="word",function="answer",code="OK"\}/)
    await until(() => server.log.includes('plugin \\"old\\" has been removed'))
    server.child.kill('SIGTERM')
    expect(await server.ended).toEqual({ code: 0, signal: null })
    // A plugin that has changed is new already.
    expect(server.log).not.toMatch(/has been reloaded|keeps serving/)
  })

  test.each([
    ['a setting that needs a restart', () => configure({ word: { wasm: 'two.wasm' } }, 'health: true\n'), 'changing health needs a restart'],
    ['a schema that needs a restart', () => {
      writeFileSync(path('word.yaml'), 'exports: { answer: { output: { type: string } } }')
      configure({ word: { wasm: 'two.wasm', schema: 'word.yaml' } })
    }, 'changing plugins.word.schema needs a restart'],
    ['a plugin that cannot be opened', () => configure({ word: { wasm: 'two.wasm' }, broken: { wasm: 'nowhere.wasm' } }), 'plugin \\"broken\\": '],
    ['a route whose plugin is removed', () => configure({ other: { wasm: 'two.wasm' } }), 'routes[0] names plugin \\"word\\"'],
    ['a key that does not exist', () => configure({ word: { wasm: 'two.wasm', wsai: true } }), 'did you mean \\"wasi\\"']
  ])('and rejects the whole configuration because of %s', async (_, change, reason) => {
    for (const word of ['one', 'two']) await writePlugin(`${word}.wasm`, word)
    const server = await serve([...configure({ word: { wasm: 'one.wasm' } }), ...flags])
    change()
    tell(server)
    await until(() => server.log.includes(reason))
    expect(server.log).toMatch(/rejected the new configuration, the old one stays in effect: /)
    expect(server.log).not.toMatch(/has been/)
    expect([await get(`${server.url}/word`), await pluginsOf(server.url)]).toEqual(['one', ['word']])
    configure({ word: { wasm: 'two.wasm' } })
    tell(server)
    await until(async () => await get(`${server.url}/word`) === 'two')
  })
})

test('with --watch a plugin is reloaded when its file has changed or was replaced', async () => {
  await writePlugin('word.wasm', 'one')
  const { url } = await serve([...writeConfig(), '--watch'])
  await writePlugin('word.wasm', 'two')
  await until(async () => await get(`${url}/word`) === 'two')
  await writePlugin('next.wasm', 'three')
  copyFileSync(path('next.wasm'), path('word.wasm'))
  await until(async () => await get(`${url}/word`) === 'three')
})

describe('--watch sees a new version', () => {
  async function serveCurrent () {
    for (const [release, word] of [['r1', 'one'], ['r2', 'two'], ['r3', 'three']]) {
      mkdirSync(path(release))
      await writePlugin(`${release}/word.wasm`, word)
    }
    symlinkSync('r1', path('current'))
    return serve([...configure({ word: { wasm: 'current/word.wasm' } }), '--watch'])
  }

  function switchTo (release) {
    symlinkSync(release, path('next'))
    renameSync(path('next'), path('current'))
  }

  test('behind a directory that is a symbolic link, each time it is switched', async () => {
    const { url } = await serveCurrent()
    switchTo('r2')
    await until(async () => await get(`${url}/word`) === 'two')
    switchTo('r3')
    await until(async () => await get(`${url}/word`) === 'three')
    await writePlugin('r3/word.wasm', 'four')
    await until(async () => await get(`${url}/word`) === 'four')
  })

  test('as Kubernetes mounts it: a symbolic link through a symbolic link', async () => {
    for (const [release, word] of [['..r1', 'one'], ['..r2', 'two']]) {
      mkdirSync(path(release))
      await writePlugin(`${release}/word.wasm`, word)
    }
    symlinkSync('..r1', path('current'))
    symlinkSync('current/word.wasm', path('word.wasm'))
    const { url } = await serve([...configure({ word: { wasm: 'word.wasm' } }), '--watch'])
    switchTo('..r2')
    await until(async () => await get(`${url}/word`) === 'two')
  })

  test('in a directory that was removed and created again, and logs meanwhile that the file is missing', async () => {
    mkdirSync(path('dist'))
    await writePlugin('dist/word.wasm', 'one')
    const server = await serve([...configure({ word: { wasm: 'dist/word.wasm' } }), '--watch'])
    rmSync(path('dist'), { recursive: true })
    await until(() => server.log.includes('dist/word.wasm is missing'))
    expect(await get(`${server.url}/word`)).toBe('one')
    mkdirSync(path('dist'))
    await writePlugin('dist/word.wasm', 'two')
    await until(async () => await get(`${server.url}/word`) === 'two')
  })
})

/** Whether a process has a handler for SIGHUP, the first of the signals. */
function handlesHangup (pid) {
  const [, caught] = /^SigCgt:\s+([0-9a-f]+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
  return Number.parseInt(caught.at(-1), 16) % 2 === 1
}

test('SIGHUP while the server starts loads everything again once it serves', async () => {
  // Its initialization takes a while.
  writeFileSync(path('word.wasm'), await assemble(`(module
    (func $start (local $i i64)
      (loop $again
        (local.set $i (i64.add (local.get $i) (i64.const 1)))
        (br_if $again (i64.lt_u (local.get $i) (i64.const 1000000000)))))
    (start $start)
    (func (export "answer")))`))
  const starting = serve(configure({ word: { wasm: 'word.wasm' } }))
  const [server] = running
  // Node itself needs a moment before any program can handle a signal.
  await until(() => handlesHangup(server.child.pid))
  server.child.kill('SIGHUP')
  await starting
  await until(() => server.log.includes('has been reloaded'))
})

test('SIGTERM lets a running request end', async () => {
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

test('TLS, with a certificate of one\'s own, which SIGHUP reads again', async () => {
  await writePlugin('word.wasm', 'one')
  const makeCertificate = (name) => execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
    '-subj', `/CN=${name}`, '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', path('key.pem'), '-out', path('cert.pem')], { stdio: 'ignore' })
  makeCertificate('localhost')
  const config = writeConfig()
  writeFileSync(config[1], readFileSync(config[1], 'utf8').replace('{ port: 0 }', '{ port: 0, tls: { cert: cert.pem, key: key.pem } }'))
  const server = await serve(config)
  const { url, child } = server
  const agent = new Agent({ ca: readFileSync(path('cert.pem')) })
  const answer = await new Promise((resolve, reject) => {
    request(`${url}/word`, { agent }, (response) => {
      response.setEncoding('utf8').on('data', resolve)
    }).on('error', reject).end()
  })
  agent.destroy()
  expect(answer).toBe('one')

  makeCertificate('other')
  child.kill('SIGHUP')
  const subject = () => new Promise((resolve, reject) => {
    const socket = connect({ port: new URL(url).port, host: '127.0.0.1', rejectUnauthorized: false }, () => {
      resolve(socket.getPeerCertificate().subject.CN)
      socket.destroy()
    }).on('error', reject)
  })
  await until(async () => await subject() === 'other')

  // Nothing has changed, and then the certificate is not there any more.
  child.kill('SIGHUP')
  await until(() => server.log.match(/plugin \\"visits\\" has been reloaded/g)?.length === 2)
  writeFileSync(config[1], readFileSync(config[1], 'utf8').replace(/, tls: {.*?}/, ''))
  child.kill('SIGHUP')
  await until(() => server.log.includes('changing server.tls needs a restart'))
  expect(server.log.match(/the certificate has been changed/g)).toHaveLength(1)
})

test('a wrong configuration exits with 2, and a broken plugin with 1, after one line', async () => {
  await writePlugin('word.wasm', 'one')
  const [, config] = writeConfig('metrcis: true\n')
  const wrong = await runNode(['bin/extism-host.js', 'serve', '--config', config])
  expect(wrong).toMatchObject({ code: 2, output: '' })
  expect(wrong.errors).toBe(`extism-host: ${config}:9: there is no "metrcis"; did you mean "metrics"?\n`)
  const { port } = new URL((await serve(writeConfig())).url)
  const taken = await runNode(['bin/extism-host.js', 'serve', '--config', writeConfig()[1], '--port', port])
  expect(taken.code).toBe(1)
  expect(taken.errors).toMatch(/^extism-host: listen EADDRINUSE: address already in use 127\.0\.0\.1:\d+\n$/)
  rmSync(path('word.wasm'))
  const missing = await runNode(['bin/extism-host.js', 'serve', '--config', writeConfig()[1]])
  expect(missing).toMatchObject({ code: 1 })
  expect(missing.errors).toMatch(/^extism-host: FILE_NOT_FOUND: plugin "word": .*\n$/)
})
