'use strict'

const { mkdtempSync, renameSync, rmSync, writeFileSync } = require('node:fs')
const { Agent, request: httpRequest } = require('node:http')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { createPlugin, Plugin } = require('..')
const { assemble, guest } = require('./support/guest.js')

const ENV = `
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))`

/** A plugin whose `version` answers with one letter. */
const versioned = (letter) => assemble(`(module ${ENV}
  (func (export "version") (local $block i64)
    (local.set $block (call $alloc (i64.const 1)))
    (call $store_u8 (local.get $block) (i32.const ${letter.charCodeAt(0)}))
    (call $output_set (local.get $block) (i64.const 1))))`)

let directory
let file
let app
const versions = {}

beforeAll(async () => {
  for (const letter of 'AB') versions[letter] = await versioned(letter)
})
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  file = join(directory, 'plugin.wasm')
  deploy(versions.A)
})
afterEach(async () => {
  await app?.close()
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

/** In one step, as who deploys should. */
function deploy (wasm) {
  writeFileSync(`${file}.new`, wasm)
  renameSync(`${file}.new`, file)
}

async function build (options, routes = [{ url: '/', plugin: 'p', function: 'version' }]) {
  app = Fastify()
  app.register(extismHost, { plugins: { p: { source: file, compileCache: false, ...options } }, routes })
  await app.ready()
}

const version = async () => (await app.inject({ method: 'POST', url: '/' })).body

describe('fastify.extism.update', () => {
  test('adds, replaces and removes plugins', async () => {
    await build()
    const before = app.extism.plugin('p')
    await app.extism.update({ p: versions.B, added: versions.A })
    expect(await version()).toBe('B')
    expect(app.extism.names).toEqual(['p', 'added'])
    expect(app.extism.plugin('p')).toBe(before)
    const added = app.extism.plugin('added')
    expect((await added.call('version')).text()).toBe('A')
    await app.extism.update({ added: null })
    expect(app.extism.names).toEqual(['p'])
    await expect(added.call('version')).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test('changes nothing if one plugin cannot be opened, or a route calls a removed one', async () => {
    await build()
    await expect(app.extism.update({ p: versions.B, added: 'nowhere.wasm' })).rejects.toMatchObject({
      code: 'FILE_NOT_FOUND', message: expect.stringContaining('plugin "added"')
    })
    await expect(app.extism.update({ p: null, added: versions.B })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(app.extism.update({ p: await guest('many') })).rejects.toMatchObject({ message: expect.stringContaining('no function "version"') })
    expect([await version(), app.extism.names]).toEqual(['A', ['p']])
  })

  test('runs after an earlier reload, and before a later one', async () => {
    await build()
    const reload = app.extism.reload('p')
    const update = app.extism.update({ p: { source: file, config: {}, smoke: { function: 'version', expect: 'B' } } })
    await expect(update).rejects.toMatchObject({ code: 'SMOKE_FAILED' })
    await reload
    deploy(versions.B)
    await Promise.all([app.extism.update({ p: versions.A }), app.extism.reload('p')])
    expect(await version()).toBe('A')
    await app.close()
    await expect(app.extism.update({ p: versions.B })).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test('leaves a plugin open that was passed as a Plugin', async () => {
    const given = await createPlugin(versions.A)
    app = Fastify()
    app.register(extismHost, { plugins: { given } })
    await app.ready()
    await app.extism.update({ given: versions.B })
    expect((await given.call('version')).text()).toBe('A')
    await app.extism.update({ given })
    expect((await app.extism.plugin('given').call('version')).text()).toBe('A')
    await app.close()
    expect((await given.call('version')).text()).toBe('A')
    await given.close()
  })
})

describe('fastify.extism.reload', () => {
  test('sends all later calls to the new version', async () => {
    await build()
    deploy(versions.B)
    expect(await version()).toBe('A')
    await app.extism.reload('p')
    expect(await version()).toBe('B')
    expect((await app.extism.plugin('p').call('version')).text()).toBe('B')
  })

  const broken = {
    'is not there': [() => rmSync(file), /cannot read/],
    'is not a module': [() => deploy('no module'), /.+/],
    'lacks a function of a route': [() => deploy(Buffer.from([0, 0x61, 0x73, 0x6D, 1, 0, 0, 0])), /it has no function "version", which a route or a trigger calls/, true],
    'has another output': [() => deploy(versions.B), /the output of its smoke call is not the expected one/, true],
    'cannot be called': [async () => deploy(await assemble('(module (func (export "version") unreachable))')), /its smoke call failed: .+/, true],
    'does not end': [async () => deploy(await assemble('(module (func (export "version") (loop $again (br $again))))')), /its smoke call failed: .+/, true]
  }
  test.each(Object.entries(broken))('of a version that %s rejects, and the old version keeps serving', async (name, [deployBroken, message, isOpened = false]) => {
    await build({ smoke: { function: 'version', expect: 'A', timeoutMs: 100 } })
    await deployBroken()
    const close = jest.spyOn(Plugin.prototype, 'close')
    await expect(app.extism.reload('p')).rejects.toThrow(message)
    expect(await version()).toBe('A')
    // What was opened is closed.
    expect(close).toHaveBeenCalledTimes(isOpened ? 1 : 0)
    close.mockRestore()
    deploy(versions.A)
    await app.extism.reload('p')
    expect(await version()).toBe('A')
  })

  test('lets the calls of the old version end, and then closes it', async () => {
    deploy(await guest('many'))
    await build({}, [])
    const close = jest.spyOn(Plugin.prototype, 'close')
    const plugin = app.extism.plugin('p')
    const running = plugin.call('compute', new Uint8Array([20]))
    const waiting = plugin.call('echo', 'old')
    deploy(versions.B)
    await app.extism.reload('p')
    expect((await plugin.call('version')).text()).toBe('B')
    expect((await Promise.all([running, waiting]))[1].text()).toBe('old')
    expect(close).toHaveBeenCalledTimes(1)
    await close.mock.results[0].value
    close.mockRestore()
  })

  test('is done one after the other', async () => {
    let opening = 0
    let most = 0
    const source = {
      then (resolve) {
        most = Math.max(most, ++opening)
        setTimeout(() => {
          opening--
          resolve(versions.A)
        }, 20)
      }
    }
    await build({ source })
    await Promise.all([1, 2, 3].map(() => app.extism.reload('p')))
    expect(most).toBe(1)
    expect(await version()).toBe('A')
  })

  test('is rejected for a plugin passed as a Plugin, for an unknown one, and after the app has closed', async () => {
    const given = await createPlugin(versions.A)
    app = Fastify()
    app.register(extismHost, { plugins: { given, p: versions.A } })
    await app.ready()
    await expect(app.extism.reload('given')).rejects.toMatchObject({ code: 'UNSUPPORTED' })
    await expect(app.extism.reload('none')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await app.close()
    await expect(app.extism.reload('p')).rejects.toMatchObject({ code: 'CLOSED' })
    await given.close()
  })

  test('that is running when the app closes leaves nothing open', async () => {
    await build()
    const plugin = app.extism.plugin('p')
    const reload = app.extism.reload('p').catch(() => {})
    await app.close()
    await reload
    await expect(plugin.call('version')).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test('a hundred times under the load of 32 connections fails no request', async () => {
    await build({ instances: 2 })
    const { port } = new URL(await app.listen({ port: 0, host: '127.0.0.1' }))
    const agent = new Agent({ keepAlive: true, maxSockets: 32 })
    const answers = new Map()
    const load = new AbortController()
    const connection = async () => {
      while (!load.signal.aborted) {
        const answer = await send(agent, port)
        answers.set(answer, (answers.get(answer) ?? 0) + 1)
      }
    }
    const connections = Promise.all(Array.from({ length: 32 }, connection))
    for (let number = 0; number < 100; number++) {
      deploy(number % 2 === 0 ? versions.B : versions.A)
      await app.extism.reload('p')
    }
    load.abort()
    await connections
    agent.destroy()
    expect([...answers.keys()].sort()).toEqual(['200 A', '200 B'])
  })
})

function send (agent, port) {
  return new Promise((resolve, reject) => {
    httpRequest({ agent, port, host: '127.0.0.1', method: 'POST' }, (response) => {
      let body = ''
      response.on('data', (chunk) => { body += chunk }).on('end', () => resolve(`${response.statusCode} ${body}`))
    }).on('error', reject).end()
  })
}

describe('a smoke call', () => {
  test('that fails keeps the app from starting', async () => {
    await expect(build({ smoke: { function: 'version', expect: Buffer.from('B') } })).rejects.toMatchObject({
      code: 'SMOKE_FAILED', message: 'plugin "p": the output of its smoke call is not the expected one'
    })
  })

  test.each([
    [{ input: 'x' }, /the function of the smoke of plugin "p" must be a non-empty string/],
    [{ function: 'version', expect: 5 }, /expect of .* must be a string or bytes/],
    [{ function: 'version', timeoutMs: -1 }, /timeoutMs of the smoke of plugin "p" must be a whole number/],
    [{ function: 'version', output: 'x' }, /the smoke of plugin "p" has no "output"/]
  ])('that is %j is refused', async (smoke, message) => {
    await expect(build({ smoke })).rejects.toThrow(message)
  })
})
