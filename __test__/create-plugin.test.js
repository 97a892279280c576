'use strict'

const { createHash } = require('node:crypto')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { pathToFileURL } = require('node:url')
const { createPlugin, MemoryStore, Plugin, PluginOutput, precompile } = require('..')
const { assemble, guest, slowToCompile } = require('./support/guest.js')
const { runNode } = require('./support/processes.js')

let directory
let wasm
let path

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  wasm = await guest('many')
  path = join(directory, 'many.wasm')
  writeFileSync(path, wasm)
})

afterAll(() => rmSync(directory, { recursive: true, maxRetries: 10 }))

function sha256 (bytes) {
  return createHash('sha256').update(bytes).digest('hex')
}

async function echoes (source, options) {
  const plugin = await createPlugin(source, options)
  const output = await plugin.call('echo', 'hello')
  await plugin.close()
  return output.text()
}

describe('a plugin is made from', () => {
  const sources = {
    'a path': () => path,
    'a file: URL': () => pathToFileURL(path),
    'a file: URL as a string': () => pathToFileURL(path).href,
    'a Buffer': () => wasm,
    'a Uint8Array': () => new Uint8Array(wasm),
    'an ArrayBuffer': () => new Uint8Array(wasm).buffer,
    'a manifest with a path': () => ({ wasm: [{ path }] }),
    'a manifest with data': () => ({ wasm: [{ data: wasm }] }),
    'a manifest with the right hash': () => ({ wasm: [{ path, hash: sha256(wasm) }] }),
    'a promise of a source': () => Promise.resolve(wasm)
  }
  for (const [name, source] of Object.entries(sources)) {
    test(name, async () => {
      expect(await echoes(source())).toBe('hello')
    })
  }

  test('several modules, of which one imports from another by its name', async () => {
    const answer = await assemble('(module (func (export "answer") (result i32) i32.const 42))')
    const main = await assemble(`(module
      (import "library" "answer" (func $answer (result i32)))
      (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
      (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
      (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
      (func (export "ask")
        (local $block i64)
        (local.set $block (call $alloc (i64.const 1)))
        (call $store_u8 (local.get $block) (call $answer))
        (call $output_set (local.get $block) (i64.const 1))))`)
    const plugin = await createPlugin({ wasm: [{ data: answer, name: 'library' }, { data: main }] })
    const output = await plugin.call('ask')
    expect([...output.bytes()]).toEqual([42])
    await plugin.close()
  })
})

describe('createPlugin rejects', () => {
  const cases = {
    'a path where nothing is': () => [join(directory, 'nothing.wasm'), 'FILE_NOT_FOUND', /nothing\.wasm/],
    'a directory': () => [directory, 'FILE_NOT_FOUND', /directory/],
    'a device': () => ['/dev/zero', 'FILE_NOT_FOUND', /not a regular file/],
    'a text file': () => [__filename, 'INVALID_WASM', /not WebAssembly/],
    'an empty file': () => {
      const empty = join(directory, 'empty.wasm')
      writeFileSync(empty, '')
      return [empty, 'INVALID_WASM', /is empty/]
    },
    'a module that is cut off': () => [wasm.subarray(0, 100), 'INVALID_WASM', /not valid WebAssembly/],
    'a component': () => [Buffer.from([0, 0x61, 0x73, 0x6D, 0x0D, 0, 1, 0]), 'INVALID_WASM', /component/],
    'empty bytes': () => [new Uint8Array(), 'INVALID_WASM', /is empty/],
    'a JSON manifest as bytes, which could name memory of this process': () =>
      [Buffer.from('{"wasm": [{"data": {"ptr": 1, "len": 1}}]}'), 'INVALID_WASM', /not WebAssembly/],
    'a wrong hash': () => [{ wasm: [{ path, hash: '00' }] }, 'HASH_MISMATCH', /hash mismatch/],
    'a manifest without modules': () => [{ wasm: [] }, 'INVALID_ARGUMENT', /names no module/],
    'a manifest whose wasm is not an array': () => [{ wasm: 'plugin.wasm' }, 'INVALID_ARGUMENT', /must be an array/],
    'a module with a path and data': () => [{ wasm: [{ path, data: wasm }] }, 'INVALID_ARGUMENT', /one of path, data, url and response/],
    'a module with neither': () => [{ wasm: [{}] }, 'INVALID_ARGUMENT', /one of path, data, url and response/],
    'a module that is a string': () => [{ wasm: [path] }, 'INVALID_ARGUMENT', /must be an object/],
    'a path with a NUL character': () => ['a\0b', 'INVALID_ARGUMENT', /NUL/],
    'a manifest key that does not exist': () => [{ wasm: [{ path }], timeout: 5 }, 'INVALID_ARGUMENT', /"timeout"/],
    null: () => [null, 'INVALID_ARGUMENT', /not null/],
    undefined: () => [undefined, 'INVALID_ARGUMENT', /not undefined/],
    'a number': () => [42, 'INVALID_ARGUMENT', /a number/],
    'an empty object': () => [{}, 'INVALID_ARGUMENT', /must be a path/],
    'an empty string': () => ['', 'INVALID_ARGUMENT', /empty/]
  }
  for (const [name, makeCase] of Object.entries(cases)) {
    test(name, async () => {
      const [source, code, message] = makeCase()
      const error = await createPlugin(source).catch((error) => error)
      expect(error).toBeInstanceOf(Error)
      expect(error).toMatchObject({ code, message: expect.stringMatching(message) })
    })
  }

  const wrongOptions = {
    'an empty name': { name: '' },
    'instances: 0': { instances: 0 },
    'instances: 1.5': { instances: 1.5 },
    'instances: "2"': { instances: '2' },
    'eager: 1': { eager: 1 },
    'maxQueue: 0': { maxQueue: 0 },
    'maxQueueBytes: 0': { maxQueueBytes: 0 },
    'timeoutMs: -1': { timeoutMs: -1 },
    'timeoutMs: NaN': { timeoutMs: NaN },
    'openTimeoutMs: 0': { openTimeoutMs: 0 },
    'openTimeoutMs: 2 ** 31': { openTimeoutMs: 2 ** 31 },
    'useWasi: "yes"': { useWasi: 'yes' },
    'a Map as the store': { store: new Map() },
    'a number in config': { config: { key: 1 } },
    'memory.maxPages: 0': { memory: { maxPages: 0 } },
    'an option that does not exist': { timeout: 5 },
    'runInWorker: 1': { runInWorker: 1 },
    'fetch: "fetch"': { fetch: 'fetch' },
    'nodeWorkerArgs: true': { nodeWorkerArgs: true },
    'nodeWorkerArgs.resourceLimits': { nodeWorkerArgs: { resourceLimits: { stackSizeMb: 4 } } },
    'fetch and allowedHosts': { fetch: async () => new Response(), allowedHosts: ['example.com'] }
  }
  for (const [name, options] of Object.entries(wrongOptions)) {
    test(name, async () => {
      const [option] = Object.keys(options)
      await expect(createPlugin(wasm, options)).rejects.toMatchObject({
        name: 'TypeError', code: 'INVALID_ARGUMENT', message: expect.stringContaining(option)
      })
    })
  }

  test('an import that nobody provides, by its name', async () => {
    const wants = await assemble('(module (import "env" "launchRocket" (func)))')
    await expect(createPlugin(wants)).rejects.toMatchObject({
      code: 'MISSING_IMPORT',
      message: 'from module "main": cannot resolve import "env" "launchRocket": not provided by host imports nor linked manifest items; it is a function () -> ()'
    })
  })

  test('an import that does not exist in a namespace that does', async () => {
    const wants = await assemble('(module (import "extism:host/env" "no_such_function" (func)))')
    await expect(createPlugin(wants)).rejects.toMatchObject({
      code: 'MISSING_IMPORT',
      message: expect.stringContaining('cannot resolve import "extism:host/env" "no_such_function"')
    })
  })

  test('WASI without useWasi, and says how to allow it', async () => {
    const wants = await assemble('(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))))')
    await expect(createPlugin(wants)).rejects.toMatchObject({
      code: 'MISSING_IMPORT',
      message: expect.stringContaining('useWasi: true')
    })
    const plugin = await createPlugin(wants, { useWasi: true })
    await plugin.close()
  })

  test('a host function imported with a signature that it does not have', async () => {
    const wants = await assemble('(module (import "env" "hostMemoryGet" (func (param i32) (result i32))))')
    await expect(createPlugin(wants)).rejects.toMatchObject({
      code: 'INVALID_WASM',
      message: expect.stringContaining('hostMemoryGet')
    })
  })
})

test('options win over the manifest, which may be written in snake_case', async () => {
  const manifest = { wasm: [{ data: wasm }], config: { who: 'manifest' }, timeout_ms: 100, memory: { max_pages: 64 } }
  const plugin = await createPlugin(manifest, { config: { who: 'options' } })
  expect((await plugin.call('read_config', 'who')).text()).toBe('options')
  await expect(plugin.call('loop_for_ever')).rejects.toMatchObject({ code: 'TIMEOUT' })
  await plugin.close()
})

test('a signal ends the loading at once, even while the compiler runs', async () => {
  const reason = new Error('enough')
  await expect(createPlugin(wasm, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
  const controller = new AbortController()
  const loading = createPlugin(wasm, { signal: controller.signal, compileCache: false })
  setTimeout(() => controller.abort(reason), 1)
  await expect(loading).rejects.toBe(reason)
  await expect(createPlugin(wasm, { signal: 'now' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
})

describe('openTimeoutMs', () => {
  const late = { code: 'TIMEOUT', message: 'the plugin was not opened within 50 ms (openTimeoutMs)' }

  test('ends the opening while the compiler runs, which timeoutMs does not', async () => {
    const slow = await slowToCompile()
    const controller = new AbortController()
    const reason = new Error('enough')
    const opening = createPlugin(slow, { timeoutMs: 50, compileCache: false, signal: controller.signal })
    let isSettled = false
    const settled = () => { isSettled = true }
    opening.then(settled, settled)
    await expect(createPlugin(slow, { openTimeoutMs: 50, compileCache: false })).rejects.toMatchObject(late)
    // The limit for calls is as short.
    expect(isSettled).toBe(false)
    controller.abort(reason)
    await expect(opening).rejects.toBe(reason)
  })

  test('ends an initialization, a source that does not arrive, and precompile', async () => {
    const endless = await assemble('(module (func (export "_initialize") (loop (br 0))))')
    await expect(createPlugin(endless, { openTimeoutMs: 50 })).rejects.toMatchObject(late)
    await expect(createPlugin(new Promise(() => {}), { openTimeoutMs: 50 })).rejects.toMatchObject(late)
    await expect(precompile(new Promise(() => {}), { openTimeoutMs: 50 })).rejects.toMatchObject(late)
  })

  test('lets the process end while the compiler runs', async () => {
    const slow = join(directory, 'slow.wasm')
    // It takes longer than a test may.
    writeFileSync(slow, await slowToCompile(30))
    const { code, output } = await runNode(['-e', `
      const { createPlugin } = require('.')
      const options = { openTimeoutMs: 50, compileCache: false }
      createPlugin(${JSON.stringify(slow)}, options).catch(({ code }) => { console.log(code) })
    `])
    expect({ code, output }).toEqual({ code: 0, output: 'TIMEOUT\n' })
  })

  test('does not affect a plugin that was opened in time', async () => {
    const plugin = await createPlugin(wasm, { openTimeoutMs: 60_000 })
    expect((await plugin.call('echo', 'hello')).text()).toBe('hello')
    await plugin.close()
  })

  test('a rejected source is not an unhandled rejection, even if the options are wrong', async () => {
    const unheard = []
    const listener = (reason) => unheard.push(reason)
    process.on('unhandledRejection', listener)
    await expect(createPlugin(Promise.reject(new Error('no source')), { openTimeoutMs: 0 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await new Promise(setImmediate)
    process.off('unhandledRejection', listener)
    expect(unheard).toEqual([])
  })
})

test('a Plugin cannot be made without createPlugin', () => {
  expect(() => new Plugin()).toThrow(/createPlugin/)
})

test('the module has its exports by name', () => {
  expect(Object.keys(require('..')).sort()).toEqual([
    'CAPABILITIES', 'CallContext', 'ErrorCode', 'MemoryStore', 'Plugin', 'PluginError', 'PluginOutput', 'Store', 'createPlugin', 'default', 'keyvAdapter', 'newPlugin', 'openStore', 'precompile'
  ])
  expect([MemoryStore, PluginOutput].every((value) => typeof value === 'function')).toBe(true)
})

test('properties that Object.prototype was polluted with are not options', async () => {
  const script = `
    const { createPlugin } = require('.')
    const names = ['allowedHosts', 'allowedPaths', 'args', 'config', 'data', 'fetch', 'fuel', 'functions', 'hash', 'instances', 'isolation',
      'logger', 'maxPages', 'memory', 'name', 'path', 'prefix', 'runtime', 'store', 'timeout_ms', 'useWasi', 'wasi']
    async function main (sources) {
      for (const name of names) Object.defineProperty(Object.prototype, name, { value: 5, configurable: true, writable: true })
      for (const [source, options] of sources) {
        const plugin = await createPlugin(source, options)
        console.log((await plugin.call('echo', 'hello')).text())
        await plugin.close()
      }
    }
    const path = process.env.WASM
    main([[path], [require('node:fs').readFileSync(path)], [{ wasm: [{ path }] }, { memory: {}, store: { access: 'write' }, compileCache: {} }]])`
  expect(await runNode(['-e', script], { env: { WASM: path } })).toMatchObject({ code: 0, output: 'hello\n'.repeat(3), errors: '' })
})
