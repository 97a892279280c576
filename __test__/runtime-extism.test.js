'use strict'

const { join } = require('node:path')
const { MemoryStore, precompile } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

const ROOT = join(__dirname, '..')
const SAY_HELLO = join(ROOT, 'plugins/say-hello/say-hello.wasm')

let wasm

const open = pluginsOfEachTest()
const start = (options, source = wasm) => open(source, { runtime: 'extism', ...options })

beforeAll(async () => { wasm = await guest('many') })

test("the article's request has the same answer, byte for byte, on both runtimes", async () => {
  const store = new MemoryStore([['hello', '👋 Hello World 🌍'], ['message', 'I 💜 Extism 😍']])
  const answers = []
  for (const runtime of ['wasmtime', 'extism']) {
    const plugin = await open(SAY_HELLO, { runtime, useWasi: true, store })
    answers.push(Buffer.from((await plugin.call('say_hello', 'Jane Doe')).bytes()))
  }
  expect(answers[0].toString()).toContain('👋 Hello Jane Doe')
  expect(answers[0].toString()).toContain('I 💜 Extism 😍')
  expect(answers[1].equals(answers[0])).toBe(true)
})

describe('calls', () => {
  test('pass text, bytes and nothing, and 10 MB', async () => {
    const plugin = await start()
    expect((await plugin.call('echo', 'I 💜 Extism 😍')).text()).toBe('I 💜 Extism 😍')
    expect([...(await plugin.call('echo', new Uint8Array([0xFF, 0, 0xFE]))).bytes()]).toEqual([0xFF, 0, 0xFE])
    expect(await plugin.call('echo')).toBeNull()
    const large = Buffer.alloc(10_000_000, 'extism')
    expect(large.equals((await plugin.call('echo', large)).bytes())).toBe(true)
    expect(plugin.callSync('echo', 'at once').text()).toBe('at once')
  })

  test('read the store and the configuration, and keep variables', async () => {
    const store = new MemoryStore([['key', 'value']])
    const plugin = await start({ store, config: { greeting: 'hello' } })
    expect((await plugin.call('read_store', 'key')).text()).toBe('value')
    expect((await plugin.call('read_store_by_env', 'key')).text()).toBe('value')
    expect(await plugin.call('read_store', 'nothing')).toBeNull()
    expect((await plugin.call('read_config', 'greeting')).text()).toBe('hello')
    const variables = await start({}, await guest('parity'))
    expect(await variables.call('get_var')).toBeNull()
    await variables.call('set_var', 'remembered')
    expect((await variables.call('get_var')).text()).toBe('remembered')
    expect(await variables.reset()).toBe(true)
    expect(await variables.call('get_var')).toBeNull()
  })

  test('write to the store when they may', async () => {
    const store = new MemoryStore()
    const plugin = await start({ store: { store, access: 'write' }, useWasi: true }, join(ROOT, 'plugins/visits-rust/visits.wasm'))
    expect((await plugin.call('visit', 'Jane')).text()).toBe('visit 1 of Jane, after nobody')
    expect((await plugin.call('visit', 'Joé')).text()).toBe('visit 1 of Joé, after Jane')
    expect((await plugin.call('visit', 'Jane')).text()).toBe('visit 2 of Jane, after Joé')
  })

  test('run in parallel in two instances', async () => {
    const plugin = await start({ instances: 2, eager: true })
    const [stuck, echo] = await Promise.allSettled([
      plugin.call('loop_for_ever', '', null, { timeoutMs: 500 }),
      plugin.call('echo', 'meanwhile')
    ])
    expect(stuck.reason).toMatchObject({ code: 'TIMEOUT' })
    expect(echo.value.text()).toBe('meanwhile')
    expect((await plugin.call('echo', 'afterwards')).text()).toBe('afterwards')
  })

  test('that time out in one instance leave a call in another alone', async () => {
    const plugin = await start({ instances: 2, eager: true })
    const late = plugin.call('loop_for_ever', '', null, { timeoutMs: 600 }).catch((error) => [error.code, performance.now()])
    const early = plugin.call('loop_for_ever', '', null, { timeoutMs: 100 }).catch((error) => [error.code, performance.now()])
    const [[lateCode, lateAt], [earlyCode, earlyAt]] = await Promise.all([late, early])
    expect([lateCode, earlyCode]).toEqual(['TIMEOUT', 'TIMEOUT'])
    expect(lateAt - earlyAt).toBeGreaterThan(300)
  })
})

describe('errors have the codes of the default runtime', () => {
  for (const [name, code] of [
    ['fail', 'PLUGIN_ERROR'], ['return_three', 'PLUGIN_ERROR'], ['trap', 'TRAP'], ['divide_by_zero', 'TRAP'],
    ['recurse', 'TRAP'], ['grow_for_ever', 'OUT_OF_MEMORY'], ['nothing', 'FUNCTION_NOT_FOUND'],
    ['takes_an_argument', 'FUNCTION_NOT_FOUND']
  ]) {
    test(`${name}: ${code}`, async () => {
      const [expected, actual] = await Promise.all(['wasmtime', 'extism'].map(async (runtime) => {
        const plugin = await start({ runtime, memory: { maxPages: 200 } })
        const error = await plugin.call(name, 'no more tea').catch((error) => error)
        expect((await plugin.call('echo', 'next')).text()).toBe('next')
        return error
      }))
      expect(actual).toBeInstanceOf(Error)
      expect(actual.code).toBe(code)
      // A function without a name has a number, which depends on what is linked with it.
      const message = (error) => error.message.replace(/wasm-function\[\d+\]/g, 'wasm-function')
      expect({ code: actual.code, message: message(actual) }).toEqual({ code: expected.code, message: message(expected) })
    })
  }

  test('TIMEOUT, again and again', async () => {
    const plugin = await start({ timeoutMs: 50 })
    for (let i = 0; i < 5; i++) {
      await expect(plugin.call('loop_for_ever')).rejects.toMatchObject({ code: 'TIMEOUT' })
      expect((await plugin.call('echo', 'next')).text()).toBe('next')
    }
    expect(plugin.stats().replaced.interrupted).toBe(5)
    expect(plugin.stats().abandonedThreads).toBe(0)
  })

  test('CANCELED, as the reason of the signal, while a call waits and while it runs', async () => {
    const plugin = await start()
    const running = new AbortController()
    const waiting = new AbortController()
    const calls = [running, waiting].map(({ signal }) => plugin.call('loop_for_ever', '', null, { signal }))
    waiting.abort(new Error('first'))
    await expect(calls[1]).rejects.toThrow('first')
    running.abort(new Error('second'))
    await expect(calls[0]).rejects.toThrow('second')
    expect((await plugin.call('echo', 'next')).text()).toBe('next')
    expect(plugin.stats().calls.failed).toEqual({ CANCELED: 2 })
  })

  test('QUEUE_FULL and CLOSED', async () => {
    const plugin = await start({ maxQueue: 1, timeoutMs: 200 })
    const call = plugin.call('loop_for_ever')
    await expect(plugin.call('echo')).rejects.toMatchObject({ code: 'QUEUE_FULL' })
    await expect(call).rejects.toMatchObject({ code: 'TIMEOUT' })
    await plugin.close()
    await expect(plugin.call('echo')).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test('OUTPUT_TOO_LARGE', async () => {
    const plugin = await start({ maxOutputBytes: 3 })
    expect((await plugin.call('echo', 'abc')).text()).toBe('abc')
    await expect(plugin.call('echo', 'abcd')).rejects.toMatchObject({ code: 'OUTPUT_TOO_LARGE' })
  })

  test('INVALID_WASM and MISSING_IMPORT', async () => {
    await expect(start({}, Buffer.from('\0asm\x01\0\0\0junk'))).rejects.toMatchObject({ code: 'INVALID_WASM' })
    await expect(start({}, SAY_HELLO)).rejects.toMatchObject({ code: 'MISSING_IMPORT' })
  })
})

describe('what it does not support is refused by name', () => {
  const refusals = {
    functions: [{ functions: { env: { f () {} } } }, 'functions'],
    isolation: [{ isolation: 'call' }, "isolation: 'call'"],
    fuel: [{ fuel: 1_000 }, 'fuel'],
    interruption: [{ interruption: 'epoch' }, 'interruption'],
    allowedHosts: [{ allowedHosts: ['example.com'] }, 'allowedHosts'],
    args: [{ useWasi: true, wasi: { args: ['a'] } }, 'wasi.args'],
    env: [{ useWasi: true, wasi: { env: { a: 'b' } } }, 'wasi.env'],
    logger: [{ useWasi: true, enableWasiOutput: 'logger' }, "enableWasiOutput: 'logger'"],
    output: [{ useWasi: true, enableWasiOutput: true }, 'enableWasiOutput: true'],
    cache: [{ compileCache: true }, 'compileCache'],
    'size of the cache': [{ compileCache: { maxBytes: 1_000_000 } }, 'compileCache']
  }
  for (const [title, [options, name]] of Object.entries(refusals)) {
    test(title, async () => {
      const error = await start(options).catch((error) => error)
      expect(error).toMatchObject({
        code: 'UNSUPPORTED',
        message: `runtime 'extism' does not support ${name}; leave it out, or use the default runtime`
      })
    })
  }

  test('precompile', async () => {
    await expect(precompile(wasm, { runtime: 'extism' })).rejects.toMatchObject({
      code: 'UNSUPPORTED', message: expect.stringContaining('precompile')
    })
  })

  test('a host function that is called while the plugin initializes itself', async () => {
    const calling = await assemble(`(module
      (import "extism:host/env" "get_log_level" (func $level (result i32)))
      (func (export "_initialize") (drop (call $level)))
      (func (export "f")))`)
    await expect(start({}, calling)).rejects.toMatchObject({
      code: 'UNSUPPORTED', message: expect.stringContaining('get_log_level')
    })
    await open(calling)
  })

  test('unsupported options may be turned off', async () => {
    await start({ isolation: 'instance', compileCache: false, functions: {}, allowedHosts: [], wasi: {}, enableWasiOutput: false })
  })
})

test('another runtime is INVALID_ARGUMENT', async () => {
  for (const runtime of ['v8', '', 1]) {
    await expect(start({ runtime })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('runtime') })
  }
  await start({ runtime: 'wasmtime' })
})

test('the messages of a plugin go to its logger', async () => {
  const logging = await assemble(`(module
    (import "extism:host/env" "log_warn" (func $warn (param i64)))
    (import "extism:host/env" "input_length" (func $input_length (result i64)))
    (import "extism:host/env" "input_load_u8" (func $load (param i64) (result i32)))
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (func (export "warn") (local $block i64)
      (local.set $block (call $alloc (i64.const 1)))
      (call $store (local.get $block) (call $load (i64.const 0)))
      (call $warn (local.get $block))))`)
  const messages = []
  const plugin = await start({ logLevel: 'trace', logger: { warn: (message) => messages.push(message) } }, logging)
  await plugin.call('warn', '!')
  expect(messages).toEqual(['!'])
})

test('modules of a manifest are linked by name', async () => {
  const library = await assemble('(module (func (export "seven") (result i32) (i32.const 7)))')
  const main = await assemble(`(module (import "library" "seven" (func $seven (result i32)))
    (func (export "code") (result i32) (call $seven)))`)
  for (const runtime of ['wasmtime', 'extism']) {
    const plugin = await open({ wasm: [{ data: library, name: 'library' }, { data: main }] }, { runtime })
    await expect(plugin.call('code')).rejects.toMatchObject({ code: 'PLUGIN_ERROR', message: expect.stringContaining('7') })
  }
})
