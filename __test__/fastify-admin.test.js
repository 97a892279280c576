'use strict'

const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { createPlugin, MemoryStore, openStore } = require('..')
const { guest } = require('./support/guest.js')

const TOKEN = 'a token that nobody can guess'
const authorization = `Bearer ${TOKEN}`

let many
let store
let app

beforeAll(async () => { many = await guest('many') })
beforeEach(() => { store = new MemoryStore() })
afterEach(async () => { await app?.close() })

async function build (options, fastifyOptions) {
  app = Fastify(fastifyOptions)
  app.register(extismHost, { plugins: { many }, store, admin: { token: TOKEN }, ...options })
  await app.ready()
}

const ask = (method, url, payload, headers) => app.inject({ method, url, payload, headers: { authorization, ...headers } })

describe('the admin routes', () => {
  test('are off by default', async () => {
    await build({ admin: undefined })
    expect((await ask('GET', '/admin/store')).statusCode).toBe(404)
  })

  test.each([
    ['no token', undefined], ['another token', 'Bearer another token that nobody can guess'], ['the beginning of the token', `Bearer ${TOKEN.slice(0, -1)}`],
    ['more than the token', `${authorization}!`], ['an empty token', 'Bearer '], ['another scheme', `Basic ${TOKEN}`], ['the token alone', TOKEN]
  ])('reject requests with %s', async (name, authorization) => {
    store.set('key', 'value')
    await build()
    for (const [method, url] of [['GET', '/admin/store'], ['GET', '/admin/store/key'], ['PUT', '/admin/store/key'], ['DELETE', '/admin/store/key'], ['POST', '/admin/plugins/many/reload']]) {
      const response = await app.inject({ method, url, headers: authorization === undefined ? {} : { authorization } })
      expect(response.json()).toEqual({ statusCode: 401, code: 'UNAUTHORIZED', error: 'Unauthorized', message: 'the request is not authorized' })
      expect(response.headers['www-authenticate']).toBe('Bearer')
    }
    expect(store.get('key')).toBe('value')
  })

  test('may have another prefix', async () => {
    await build({ admin: { token: TOKEN, prefix: '/ops' }, prefix: '/api' })
    expect((await ask('GET', '/api/ops/store')).statusCode).toBe(200)
  })

  test.each([
    [{}], [{ token: '' }], [{ token: '123456789012345' }], [{ token: 5 }], [{ token: `${TOKEN} ` }], [{ token: `${TOKEN}ü` }], [{ token: TOKEN, prefix: '/' }], [{ token: TOKEN, user: 'me' }], [true]
  ])('that are %j are refused, and no message has the token', async (admin) => {
    const refusal = await build({ admin }).catch((error) => error)
    expect(refusal).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('admin') })
    expect(refusal.message).not.toContain(TOKEN)
  })
})

describe('the store', () => {
  const KEYS = ['key', 'a/b', '/a//b/', 'a%2Fb', '100%', 'a b+c', 'ä?x=1#y&z', '👋', 'a/../b', '%']

  test.each(KEYS)('serves the key %s', async (key) => {
    await build()
    const url = `/admin/store/${encodeURIComponent(key)}`
    const bytes = Buffer.from([0xFF, 0, 0x7B])
    expect((await ask('GET', url)).json()).toMatchObject({ statusCode: 404, code: 'KEY_NOT_FOUND' })
    expect((await ask('PUT', url, bytes, { 'content-type': 'application/json' })).statusCode).toBe(204)
    expect([...store]).toEqual([[key, bytes]])
    const { headers, rawPayload } = await ask('GET', url)
    expect([...rawPayload]).toEqual([...bytes])
    expect(headers).toMatchObject({ 'content-type': 'application/octet-stream', 'x-content-type-options': 'nosniff', 'cache-control': 'no-store' })
    expect((await ask('DELETE', url)).statusCode).toBe(204)
    expect((await ask('DELETE', url)).statusCode).toBe(404)
    expect(store.size).toBe(0)
  })

  test('serves keys with slashes unchanged, also on a real socket', async () => {
    await build()
    const url = await app.listen({ port: 0, host: '127.0.0.1' })
    expect((await fetch(`${url}/admin/store/users/7/name`, { method: 'PUT', body: 'Jane', headers: { authorization } })).status).toBe(204)
    expect(String(await (await openStore(store)).get('users/7/name'))).toBe('Jane')
    expect(await (await fetch(`${url}/admin/store/users/7/name`, { headers: { authorization } })).text()).toBe('Jane')
  })

  test('has empty values and an empty key', async () => {
    await build()
    expect((await ask('PUT', '/admin/store/')).statusCode).toBe(204)
    expect(store.has('')).toBe(true)
    const response = await ask('GET', '/admin/store/')
    expect([response.statusCode, response.payload]).toEqual([200, ''])
  })

  test('takes lifetimes', async () => {
    await build()
    expect((await ask('PUT', '/admin/store/key?ttlMs=30', 'x')).statusCode).toBe(204)
    expect(store.has('key')).toBe(true)
    while (store.has('key')) await new Promise((resolve) => setTimeout(resolve, 5))
    for (const ttlMs of ['', '0', 'x', '1.5', '-1', '1&ttlMs=2']) {
      expect((await ask('PUT', `/admin/store/key?ttlMs=${ttlMs}`, 'x')).json()).toMatchObject({ statusCode: 400, code: 'INVALID_ARGUMENT', message: expect.stringContaining('ttlMs') })
    }
    expect(store.has('key')).toBe(false)
  })

  test('lists its keys page by page', async () => {
    for (let number = 0; number < 1_500; number++) store.set(`ä/${String(number).padStart(4, '0')}`, '')
    store.set('other', '')
    await build()
    const first = (await ask('GET', `/admin/store?prefix=${encodeURIComponent('ä/')}`)).json()
    expect(first.keys).toHaveLength(1_000)
    const second = (await ask('GET', `/admin/store?prefix=${encodeURIComponent('ä/')}&cursor=${encodeURIComponent(first.cursor)}`)).json()
    expect(second.keys).toHaveLength(500)
    expect(second.cursor).toBeNull()
    expect([...first.keys, ...second.keys]).toEqual([...store.keys()].slice(0, -1))
    expect((await ask('GET', '/admin/store?prefix=oth')).json()).toEqual({ keys: ['other'], cursor: null })
    expect((await ask('GET', '/admin/store?prefix=a&prefix=b')).statusCode).toBe(400)
    expect((await ask('GET', '/admin/store?cursor=a&cursor=b')).statusCode).toBe(400)
  })

  test('is the whole store, also if plugins see only a part', async () => {
    await build({ store: { store, prefix: 'guest:' } })
    await ask('PUT', '/admin/store/guest:key', 'value')
    expect((await app.extism.plugin('many').call('read_store', 'key')).text()).toBe('value')
  })

  test('that is closed is a 503, and a key that is too long a 400', async () => {
    const opened = await openStore(store)
    await build({ store: opened }, { http: { maxHeaderSize: 200_000 } })
    expect((await ask('PUT', `/admin/store/${'k'.repeat(65_537)}`)).json()).toMatchObject({ statusCode: 400, code: 'INVALID_ARGUMENT' })
    await opened.close()
    expect((await ask('GET', '/admin/store/key')).json()).toMatchObject({ statusCode: 503, code: 'CLOSED' })
  })

  test('has no routes without a store', async () => {
    await build({ store: undefined })
    expect((await ask('GET', '/admin/store')).statusCode).toBe(404)
  })
})

describe('a reload', () => {
  test('makes the new version serve, or returns the reason if not', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
    const file = join(directory, 'plugin.wasm')
    writeFileSync(file, many)
    await build({ plugins: { p: { source: file, compileCache: false } } })
    expect((await app.extism.plugin('p').call('count')).getUint8(0)).toBe(1)
    const response = await ask('POST', '/admin/plugins/p/reload')
    expect([response.statusCode, response.payload]).toEqual([204, ''])
    expect((await app.extism.plugin('p').call('count')).getUint8(0)).toBe(1)
    rmSync(directory, { recursive: true })
    const refused = await ask('POST', '/admin/plugins/p/reload')
    expect(refused.json()).toMatchObject({ statusCode: 422, code: 'FILE_NOT_FOUND', message: expect.stringContaining(file) })
    expect((await app.extism.plugin('p').call('count')).getUint8(0)).toBe(2)
  })

  test('of an unknown plugin is a 404, and of one passed as a Plugin a 409', async () => {
    const given = await createPlugin(many)
    await build({ plugins: { given } })
    expect((await ask('POST', '/admin/plugins/none/reload')).json()).toMatchObject({ statusCode: 404, code: 'PLUGIN_NOT_FOUND' })
    expect((await ask('POST', '/admin/plugins/given/reload')).json()).toMatchObject({ statusCode: 409, code: 'UNSUPPORTED' })
    await given.close()
  })
})
