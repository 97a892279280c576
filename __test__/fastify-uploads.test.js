'use strict'

// Uploads of new versions of plugins through the admin routes.

const { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } = require('node:fs')
const { createHash } = require('node:crypto')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { pathToFileURL } = require('node:url')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { createPlugin } = require('..')
const { assemble } = require('./support/guest.js')

const TOKEN = 'a token that nobody can guess'
const authorization = `Bearer ${TOKEN}`
const ROUTES = [{ url: '/word', method: 'GET', plugin: 'word', function: 'answer' }]

let directory
let app
const uploads = () => join(directory, 'uploads')

beforeEach(() => { directory = mkdtempSync(join(tmpdir(), 'extism-host-uploads-')) })
afterEach(async () => {
  await app?.close()
  app = undefined
  rmSync(directory, { recursive: true })
})

/** A plugin whose function `answer` answers with a word. */
function plugin (word, functionName = 'answer') {
  const stores = [...Buffer.from(word)].map((byte, index) => `(call $store_u8 (i64.add (local.get $at) (i64.const ${index})) (i32.const ${byte}))`)
  return assemble(`(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (func (export "${functionName}") (result i32) (local $at i64)
      (local.set $at (call $alloc (i64.const ${word.length})))
      ${stores.join(' ')}
      (call $output_set (local.get $at) (i64.const ${word.length}))
      (i32.const 0)))`)
}

async function build (options = {}, admin = { uploads: { directory: uploads() } }) {
  await app?.close()
  app = Fastify()
  app.register(extismHost, { plugins: { word: await plugin('one') }, routes: ROUTES, admin: { token: TOKEN, ...admin }, ...options })
  await app.ready()
}

const ask = (method, url, payload, headers) => app.inject({ method, url, payload, headers: { authorization, ...headers } })
const upload = (bytes, name = 'word') => ask('POST', `/admin/plugins/${name}`, bytes, { 'content-type': 'application/wasm' })
const word = async () => (await app.inject('/word')).body
const kept = () => existsSync(uploads()) ? readdirSync(uploads()) : []

test('an upload serves, stays after a restart, and is listed', async () => {
  const two = await plugin('two')
  const sha256 = createHash('sha256').update(two).digest('hex')
  await build()
  expect((await ask('GET', '/admin/plugins')).json()).toEqual({ plugins: [{ name: 'word', openedAt: expect.stringMatching(/^\d{4}-.*Z$/), upload: null }] })
  const response = await upload(two)
  expect([response.statusCode, response.json()]).toEqual([200, { name: 'word', openedAt: expect.any(String), upload: { sha256, bytes: two.length } }])
  expect(await word()).toBe('two')
  await build()
  expect(await word()).toBe('two')
  expect((await ask('GET', '/admin/plugins')).json().plugins[0].upload.sha256).toBe(sha256)
  await upload(await plugin('three'))
  expect(await word()).toBe('three')
  expect(kept()).toEqual(['word.wasm'])
})

test('an upload removes what a killed process has left, and no other file', async () => {
  const ended = '.extism-host-98a1bb8c-6ff6-4e2a-a8e2-a2d0f1c16a3b.tmp'
  const running = '.extism-host-00d4a1d1-6bb0-4f3c-9c5e-1c8f8f5e7f10.tmp'
  const others = ['.98a1bb8c-6ff6-4e2a-a8e2-a2d0f1c16a3b.tmp', '.extism-host-notes.tmp']
  mkdirSync(uploads())
  for (const name of [ended, running, ...others]) writeFileSync(join(uploads(), name), '')
  for (const name of [ended, ...others]) utimesSync(join(uploads(), name), 0, 0)
  await build()
  await upload(await plugin('two'))
  expect(kept().sort()).toEqual([running, ...others, 'word.wasm'].sort())
})

test('a reload keeps the upload; without its file, the configured module serves again', async () => {
  await build()
  await upload(await plugin('two'))
  expect((await ask('POST', '/admin/plugins/word/reload')).statusCode).toBe(204)
  await app.extism.update({ word: await plugin('configured') })
  expect(await word()).toBe('two')
  rmSync(join(uploads(), 'word.wasm'))
  await app.extism.reload('word')
  expect(await word()).toBe('configured')
})

describe('the old version keeps serving, and nothing is kept, if the upload', () => {
  const smoke = { function: 'answer', expect: 'one' }
  test.each([
    ['is not a module', 'INVALID_WASM', () => Buffer.from('not a module')],
    ['is empty', 'INVALID_WASM', () => undefined],
    ['is a manifest', 'INVALID_WASM', () => Buffer.from(JSON.stringify({ wasm: [{ path: '/etc/passwd' }] }))],
    ['lacks a function of a route', 'INVALID_ARGUMENT', () => plugin('one', 'other')],
    ['fails the smoke call', 'SMOKE_FAILED', () => plugin('two')],
    ['imports what it may not', 'MISSING_IMPORT', () => assemble('(module (import "env" "secret" (func)) (func (export "answer")))')],
    ['traps at its start', 'TRAP', () => assemble('(module (func $start unreachable) (start $start) (func (export "answer")))')]
  ])('%s', async (_, code, make) => {
    await build({ plugins: { word: { source: await plugin('one'), smoke } } })
    const response = await upload(await make())
    expect(response.json()).toMatchObject({ statusCode: 422, code })
    expect(await word()).toBe('one')
    expect(kept()).toEqual([])
    expect((await ask('GET', '/admin/plugins')).json().plugins[0].upload).toBeNull()
  })

  test('is too large', async () => {
    const two = await plugin('two')
    await build({}, { uploads: { directory: uploads(), maxBytes: two.length - 1 } })
    expect((await upload(two)).statusCode).toBe(413)
    expect((await upload(await plugin('2'))).statusCode).toBe(200)
  })

  test('cannot be written', async () => {
    writeFileSync(uploads(), 'a file in place of the directory')
    // Opening reads the directory first.
    await expect(build()).rejects.toMatchObject({ code: 'ENOTDIR' })
    rmSync(uploads())
    await build()
    writeFileSync(uploads(), 'a file in place of the directory')
    expect((await upload(await plugin('two'))).json()).toMatchObject({ statusCode: 507, code: 'UPLOAD_NOT_KEPT' })
    expect(await word()).toBe('one')
    rmSync(uploads())
  })
})

test('an upload that was refused leaves an earlier one in place', async () => {
  await build()
  await upload(await plugin('two'))
  expect((await upload(Buffer.from('broken'))).statusCode).toBe(422)
  await build()
  expect(await word()).toBe('two')
})

test('the module of a manifest is replaced, its permissions and hash stay', async () => {
  const one = await plugin('one')
  const helper = await assemble('(module (func (export "help")))')
  const manifest = { wasm: [{ data: helper, name: 'helper' }, { data: one, name: 'main' }], config: { key: 'value' } }
  await build({ plugins: { word: manifest } })
  const linked = await assemble(`(module
    (import "helper" "help" (func $help))
    (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (func (export "answer") (result i32) (local $key i64) (local $value i64)
      (call $help)
      (local.set $key (call $alloc (i64.const 3)))
      (call $store_u8 (local.get $key) (i32.const 107))
      (call $store_u8 (i64.add (local.get $key) (i64.const 1)) (i32.const 101))
      (call $store_u8 (i64.add (local.get $key) (i64.const 2)) (i32.const 121))
      (local.set $value (call $config_get (local.get $key)))
      (call $output_set (local.get $value) (call $length (local.get $value)))
      (i32.const 0)))`)
  expect((await upload(linked)).statusCode).toBe(200)
  expect(await word()).toBe('value')

  rmSync(uploads(), { recursive: true })
  const hash = createHash('sha256').update(one).digest('hex')
  await build({ plugins: { word: { wasm: [{ data: one, hash }] } } })
  expect((await upload(await plugin('two'))).statusCode).toBe(422)
  expect(await word()).toBe('one')
})

test('a plugin whose manifest is unknown, or that was passed as a Plugin, takes no uploads', async () => {
  const given = await createPlugin(await plugin('one'))
  await build({ plugins: { word: given, fetched: Promise.resolve(await plugin('one')) } })
  for (const name of ['word', 'fetched']) {
    expect((await upload(await plugin('two'), name)).json()).toMatchObject({ statusCode: 409, code: 'UNSUPPORTED' })
  }
  expect(await word()).toBe('one')
  expect(kept()).toEqual([])
  await app.close()
  await given.close()
})

test('plugins are files, paths or URLs of files', async () => {
  const file = join(directory, 'word.wasm')
  for (const source of [file, pathToFileURL(file), String(pathToFileURL(file))]) {
    writeFileSync(file, await plugin('one'))
    await build({ plugins: { word: source } })
    expect([(await upload(await plugin('two'))).statusCode, await word()]).toEqual([200, 'two'])
    expect(readFileSync(file)).toEqual(await plugin('one'))
    rmSync(uploads(), { recursive: true })
  }
})

test('a kept upload that cannot be opened fails the start, and the error names its file', async () => {
  await build()
  await upload(await plugin('two'))
  writeFileSync(join(uploads(), 'word.wasm'), 'broken')
  await expect(build()).rejects.toMatchObject({ code: 'INVALID_WASM', message: expect.stringContaining(join(uploads(), 'word.wasm')) })
})

test('only the server can read what is kept, and names of plugins do not leave the directory', async () => {
  const name = '../../etc/passwd'
  await build({ plugins: { [name]: await plugin('one') }, routes: [] })
  expect((await upload(await plugin('two'), encodeURIComponent(name))).statusCode).toBe(200)
  expect(kept()).toEqual(['..%2F..%2Fetc%2Fpasswd.wasm'])
  expect(statSync(uploads()).mode & 0o777).toBe(0o700)
  expect(statSync(join(uploads(), kept()[0])).mode & 0o777).toBe(0o600)
})

describe('a client', () => {
  test.each([['without a token', undefined], ['with another token', 'Bearer another token that nobody can guess']])('%s learns nothing', async (_, authorization) => {
    const two = await plugin('two')
    const headers = { 'content-type': 'application/wasm', ...(authorization === undefined ? {} : { authorization }) }
    const answers = new Set()
    for (const admin of [{}, { uploads: { directory: uploads(), maxBytes: 10 } }]) {
      await build({}, admin)
      for (const name of ['word', 'none']) {
        for (const [method, payload] of [['POST', two], ['POST', Buffer.from('x')], ['GET', undefined]]) {
          const url = method === 'GET' ? '/admin/plugins' : `/admin/plugins/${name}`
          const { statusCode, body } = await app.inject({ method, url, payload, headers })
          answers.add(`${statusCode} ${body}`)
        }
      }
    }
    expect([...answers]).toEqual(['401 {"statusCode":401,"code":"UNAUTHORIZED","error":"Unauthorized","message":"the request is not authorized"}'])
    expect(await word()).toBe('one')
    expect(kept()).toEqual([])
  })

  test('with the token hears that a plugin is unknown, and that uploads are off', async () => {
    await build()
    expect((await upload(await plugin('two'), 'none')).json()).toMatchObject({ statusCode: 404, code: 'PLUGIN_NOT_FOUND' })
    await build({}, {})
    expect((await upload(await plugin('two'))).json()).toMatchObject({ statusCode: 409, code: 'UNSUPPORTED', message: expect.stringContaining('admin.uploads') })
  })
})

test('uploads and reloads at the same time run one after the other; the last one is what is kept', async () => {
  await build()
  const words = ['a', 'b', 'c', 'd', 'e']
  const modules = await Promise.all(words.map((one) => plugin(one)))
  const responses = await Promise.all(modules.flatMap((bytes) => [upload(bytes), ask('POST', '/admin/plugins/word/reload')]))
  expect(responses.map(({ statusCode }) => statusCode)).toEqual(words.flatMap(() => [200, 204]))
  const serving = await word()
  await build()
  expect(await word()).toBe(serving)
  expect(kept()).toEqual(['word.wasm'])
})

test('no call is lost while an upload takes over', async () => {
  await build()
  const two = await plugin('two')
  const over = new AbortController()
  const answers = new Set()
  const calls = (async () => { while (!over.signal.aborted) answers.add(await word()) })()
  for (let times = 0; times < 5; times++) expect((await upload(two)).statusCode).toBe(200)
  over.abort()
  await calls
  answers.add(await word())
  expect([...answers].sort()).toEqual(['one', 'two'])
})

test.each([[5], [{}], [{ directory: '' }], [{ directory: 'x', maxBytes: 0 }], [{ directory: 'x', size: 1 }]])('admin.uploads: %j is refused', async (uploads) => {
  await expect(build({}, { uploads })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('admin.uploads') })
})
