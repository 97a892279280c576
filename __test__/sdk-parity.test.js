'use strict'

// What the JavaScript SDK's own tests look at, here in the same words: who changes the import finds the
// same behaviour and the same messages. docs/how-to/migrate.md names the cases that are different.

const { createHash } = require('node:crypto')
const { createServer } = require('node:http')
const createPlugin = require('..').default
const { assemble, guest } = require('./support/guest.js')
const { runNode } = require('./support/processes.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

const open = pluginsOfEachTest()

let wasm
let server
let base

beforeAll(async () => {
  wasm = await guest('parity')
  server = createServer((request, response) => {
    const isManifest = request.url.endsWith('.json')
    response.writeHead(200, { 'content-type': isManifest ? 'application/json' : 'application/wasm' })
    response.end(isManifest ? JSON.stringify({ wasm: [{ url: `${base}/plugin.wasm` }] }) : wasm)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  base = `http://127.0.0.1:${server.address().port}`
})

afterAll(() => {
  server.closeAllConnections()
  return new Promise((resolve) => server.close(resolve))
})

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex')

async function countsVowels (source, options) {
  const plugin = await open(source, options)
  return (await plugin.call('count_vowels', 'hello world')).json()
}

describe('createPlugin loads', () => {
  const sources = {
    'a URL': () => `${base}/plugin.wasm`,
    'a URL of a manifest': () => new URL(`${base}/plugin.json`),
    'a manifest': () => ({ wasm: [{ url: `${base}/plugin.wasm` }] }),
    'a Response': () => fetch(`${base}/plugin.wasm`),
    'a Response of a manifest': () => fetch(`${base}/plugin.json`),
    'a promise of a manifest': () => Promise.resolve({ wasm: [{ data: wasm }] }),
    bytes: () => new Uint8Array(wasm),
    'an ArrayBuffer': () => new Uint8Array(wasm).buffer,
    'a module whose hash is right': () => ({ wasm: [{ url: `${base}/plugin.wasm`, hash: sha256(wasm) }] })
  }
  for (const [name, source] of Object.entries(sources)) {
    for (const runInWorker of [false, true]) {
      test(`${name}, with runInWorker: ${runInWorker}`, async () => {
        expect(await countsVowels(source(), { runInWorker })).toBe(3)
      })
    }
  }

  test('a plugin with options for workers, which have no effect here', async () => {
    const options = { runInWorker: true, sharedArrayBufferSize: 1 << 16, nodeWorkerArgs: { name: 'plugin', execArgv: [] } }
    expect(await countsVowels(wasm, options)).toBe(3)
  })
})

describe('createPlugin rejects', () => {
  test('a WebAssembly.Module, which has no bytes to hand over', async () => {
    const module = await WebAssembly.compile(wasm)
    for (const source of [module, { wasm: [{ module }] }]) {
      await expect(createPlugin(source)).rejects.toMatchObject({
        name: 'TypeError', code: 'INVALID_ARGUMENT', message: expect.stringContaining('pass the bytes themselves')
      })
    }
  })

  test('a WebAssembly.Module with a hash', async () => {
    const module = await WebAssembly.compile(wasm)
    await expect(createPlugin({ wasm: [{ module, hash: sha256(wasm) }] })).rejects.toMatchObject({
      message: 'Item specified a hash but WebAssembly.Module source data is unavailable for hashing'
    })
  })

  test('bytes that do not have the hash, be it none at all', async () => {
    for (const hash of ['not a good hash', sha256('other')]) {
      await expect(createPlugin({ wasm: [{ data: wasm, hash }] })).rejects.toThrow(/hash mismatch/)
    }
  })

  test('a module that lacks a dependency, with the way to it', async () => {
    const lhs = await assemble('(module (import "rhs" "add_one" (func)) (func (export "run")))')
    const main = await assemble('(module (import "lhs" "run" (func)))')
    await expect(createPlugin({ wasm: [{ name: 'lhs', data: lhs }, { data: main }] })).rejects.toMatchObject({
      code: 'MISSING_IMPORT',
      message: 'from module "main"/"lhs": cannot resolve import "rhs" "add_one": not provided by host imports nor linked manifest items; it is a function () -> ()'
    })
  })
})

describe('exports and imports', () => {
  test('are those of the main module, as WebAssembly.Module has them', async () => {
    const module = new WebAssembly.Module(wasm)
    const plugin = await open({ wasm: [{ name: 'other', data: await guest('many') }, { name: 'main', data: wasm }] })
    expect(await plugin.getExports()).toEqual(WebAssembly.Module.exports(module))
    expect(await plugin.getImports()).toEqual(WebAssembly.Module.imports(module))
  })

  test('are as their author wrote them, of every kind', async () => {
    const library = await assemble(`(module
      (memory (export "memory") 1) (table (export "table") 1 funcref) (global (export "global") i32 (i32.const 1)))`)
    const main = await assemble(`(module
      (import "library" "memory" (memory 1)) (import "library" "table" (table 1 funcref)) (import "library" "global" (global i32))
      (func (export "_initialize")) (func (export "_start")) (func (export "f") (param i32)))`)
    const plugin = await open({ wasm: [{ name: 'library', data: library }, { data: main }] })
    const module = new WebAssembly.Module(main)
    expect(await plugin.getExports()).toEqual(WebAssembly.Module.exports(module))
    expect(await plugin.getImports()).toEqual(WebAssembly.Module.imports(module))
  })

  test('there is no instance, and the message says what to use instead', async () => {
    const plugin = await open(wasm)
    await expect(plugin.getInstance()).rejects.toMatchObject({ code: 'UNSUPPORTED', message: expect.stringContaining('getExports()') })
  })

  test('reject for a closed plugin', async () => {
    const plugin = await open(wasm)
    await plugin.close()
    for (const ask of ['getExports', 'getImports', 'reset']) await expect(plugin[ask]()).rejects.toMatchObject({ code: 'CLOSED' })
  })
})

test('modules are linked by their names, a namespace of the host included', async () => {
  const user = await assemble('(module (func (export "answer") (result i32) (i32.const 42)))')
  const main = await assemble(`(module (import "extism:host/user" "answer" (func $answer (result i32)))
    (func (export "ask") (result i32) (call $answer)))`)
  const plugin = await open({ wasm: [{ name: 'extism:host/user', data: user }, { name: 'main', data: main }] })
  await expect(plugin.call('ask')).rejects.toThrow('Plugin-originated error: the plugin returned the code 42')
})

describe('a call', () => {
  test('of an unknown function is rejected with its name', async () => {
    const plugin = await open(wasm)
    expect(await plugin.functionExists('count_vowels')).toBe(true)
    expect(await plugin.functionExists('count_sheep')).toBe(false)
    await expect(plugin.call('count_sheep')).rejects.toThrow(/^Plugin error: function "count_sheep" does not exist;/)
  })

  test('that allocates has its output', async () => {
    const plugin = await open(wasm)
    expect((await plugin.call('run_test', '')).text()).toBe('thing')
  })

  test('finds its input by its offset, whatever it is', async () => {
    const plugin = await open(wasm)
    expect((await plugin.call('input_offset', 'hello')).string()).toBe('hello')
    expect([...(await plugin.call('input_offset', new Uint8Array([0, 255]))).bytes()]).toEqual([0, 255])
    expect((await plugin.call('input_offset')).byteLength).toBe(0)
  })

  test('fails gracefully, and the plugin keeps working', async () => {
    const plugin = await open(wasm)
    for (let times = 0; times < 3; times++) {
      await expect(plugin.call('do_error')).rejects.toThrow(/^Plugin-originated error: Some error message$/)
      expect((await plugin.call('count_vowels', 'aei')).text()).toBe('3')
    }
  })

  test('that takes too long is canceled', async () => {
    const plugin = await open(wasm, { timeoutMs: 100 })
    await expect(plugin.call('loop_forever')).rejects.toMatchObject({ code: 'TIMEOUT', message: 'EXTISM: call canceled due to timeout: it ran for longer than 100 ms' })
    expect((await plugin.call('count_vowels', 'a')).text()).toBe('1')
  })
})

test('an initialization that takes too long is canceled', async () => {
  const endless = await assemble('(module (func $loop (loop $again (br $again))) (start $loop))')
  await expect(createPlugin(endless, { timeoutMs: 100 }))
    .rejects.toMatchObject({ code: 'TIMEOUT', message: 'EXTISM: timed out while waiting for plugin to instantiate: it ran for longer than 100 ms' })
})

describe('memory.maxPages', () => {
  test('ends a call that wants more', async () => {
    const plugin = await open(wasm, { memory: { maxPages: 2 } })
    await expect(plugin.call('alloc_memory')).rejects.toMatchObject({ code: 'OUT_OF_MEMORY', message: expect.stringContaining('maxPages') })
    await expect(plugin.call('count_vowels', new Uint8Array(3 * 65536))).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
    expect((await plugin.call('count_vowels', 'a')).text()).toBe('1')
    expect(plugin.stats().replaced.outOfMemory).toBe(2)
  })

  test('lets one that wants less', async () => {
    const plugin = await open({ wasm: [{ data: wasm }], memory: { maxPages: 6 } })
    for (let times = 0; times < 10; times++) expect(await plugin.call('alloc_memory')).toBe(null)
  })
})

describe('variables', () => {
  test('are there in the next call, and gone after a reset', async () => {
    const plugin = await open(wasm)
    expect((await plugin.call('get_var')).byteLength).toBe(0)
    await plugin.call('set_var', 'remembered')
    expect((await plugin.call('get_var')).text()).toBe('remembered')
    expect(await plugin.reset()).toBe(true)
    expect((await plugin.call('get_var')).byteLength).toBe(0)
  })

  test('over memory.maxVarBytes end the call', async () => {
    const plugin = await open(wasm, { memory: { maxVarBytes: 100 } })
    await expect(plugin.call('set_var', 'v'.repeat(1024))).rejects.toMatchObject({
      code: 'HOST_FUNCTION_ERROR', message: 'var memory limit exceeded: 1024 bytes requested, 100 allowed'
    })
  })

  test('within memory.maxVarBytes are kept, to the last byte', async () => {
    const plugin = await open(wasm, { memory: { maxVarBytes: 1024 } })
    for (let times = 0; times < 3; times++) await plugin.call('set_var', 'v'.repeat(1024))
    expect((await plugin.call('get_var')).byteLength).toBe(1024)
  })
})

describe('config', () => {
  test('comes from the options', async () => {
    const plugin = await open(wasm, { config: { thing: 'of the options' } })
    expect((await plugin.call('get_config')).text()).toBe('of the options')
  })

  test('comes from the manifest where the options have none', async () => {
    const manifest = { wasm: [{ data: wasm }], config: { thing: 'of the manifest' } }
    expect((await (await open(manifest)).call('get_config')).text()).toBe('of the manifest')
    expect((await (await open(manifest, { config: { thing: 'of the options' } })).call('get_config')).text()).toBe('of the options')
  })
})

describe('a plugin is active', () => {
  test('while a call is unfinished, and is not reset meanwhile', async () => {
    const plugin = await open(wasm)
    await plugin.call('set_var', 'remembered')
    expect(plugin.isActive()).toBe(false)
    const call = plugin.call('get_var')
    expect(plugin.isActive()).toBe(true)
    expect(await plugin.reset()).toBe(false)
    expect((await call).text()).toBe('remembered')
    expect(plugin.isActive()).toBe(false)
    expect(await plugin.reset()).toBe(true)
  })

  test('until a call that was aborted has stopped', async () => {
    const plugin = await open(wasm)
    const controller = new AbortController()
    const call = plugin.call('loop_forever', '', null, { signal: controller.signal })
    controller.abort()
    await expect(call).rejects.toThrow()
    expect(plugin.isActive()).toBe(true)
    while (plugin.isActive()) await new Promise((resolve) => setTimeout(resolve, 1))
    expect(await plugin.reset()).toBe(true)
  })

  test('not while it is closed without calls', async () => {
    const plugin = await open(wasm)
    const closed = plugin.close()
    expect(plugin.isActive()).toBe(false)
    await closed
  })
})

describe('the package is imported', () => {
  const NAMES = ['CAPABILITIES', 'CallContext', 'ErrorCode', 'MemoryStore', 'Plugin', 'PluginError', 'PluginOutput', 'Store', 'createPlugin', 'default', 'keyvAdapter', 'newPlugin', 'openStore', 'precompile']

  async function printed (args) {
    const { code, output, errors } = await runNode(args)
    expect({ code, errors }).toEqual({ code: 0, errors: '' })
    return JSON.parse(output)
  }

  test('with its function as the default, and everything by name', async () => {
    expect(await printed(['--input-type=module', '-e', `
      import createPlugin, { CAPABILITIES, PluginOutput } from 'extism-host'
      import * as all from 'extism-host'
      console.log(JSON.stringify([
        createPlugin === all.createPlugin && createPlugin === all.newPlugin, typeof createPlugin, typeof PluginOutput,
        CAPABILITIES.supportsTimeouts, Object.keys(all).sort()
      ]))`])).toEqual([true, 'function', 'function', true, NAMES])
  })

  test('with require, as its function with the same names', async () => {
    expect(await printed(['-e', `
      const all = require('extism-host')
      console.log(JSON.stringify([typeof all, all === all.createPlugin, all.default === all.createPlugin, all.__esModule, Object.keys(all).sort()]))`]))
      .toEqual(['function', true, true, true, NAMES])
  })

  test('in both ways at once, and is one', async () => {
    expect(await printed(['--input-type=module', '-e', `
      import { createRequire } from 'node:module'
      import { Plugin } from 'extism-host'
      const required = createRequire(import.meta.url)('extism-host')
      console.log(JSON.stringify(required.Plugin === Plugin))`])).toBe(true)
  })

  test('with its package.json', async () => {
    expect(await printed(['-p', 'JSON.stringify(require("extism-host/package.json").name)'])).toBe('extism-host')
  })
})

test('CAPABILITIES have the keys of the SDK, and the values of this host', async () => {
  const { CAPABILITIES } = require('..')
  const { output } = await runNode(['-p', 'JSON.stringify(Object.keys(require("@extism/extism").CAPABILITIES))'])
  expect(Object.keys(CAPABILITIES).sort()).toEqual(JSON.parse(output).sort())
  expect(CAPABILITIES).toMatchObject({ hasWorkerCapability: true, supportsWasiPreview1: true, crossOriginChecksEnforced: false })
  const before = process.env.EXTISM_ENABLE_WASI_OUTPUT
  try {
    process.env.EXTISM_ENABLE_WASI_OUTPUT = '1'
    expect(CAPABILITIES.extismStdoutEnvVarSet).toBe(true)
    delete process.env.EXTISM_ENABLE_WASI_OUTPUT
    expect(CAPABILITIES.extismStdoutEnvVarSet).toBe(false)
  } finally {
    if (before !== undefined) process.env.EXTISM_ENABLE_WASI_OUTPUT = before
  }
})
