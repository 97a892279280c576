'use strict'

const { readFileSync } = require('node:fs')
const { inspect } = require('node:util')
const { createPlugin, ErrorCode, PluginError } = require('..')
const { codedError } = require('../lib/errors.js')
const { assemble } = require('./support/guest.js')
const { runNode } = require('./support/processes.js')

let source

beforeAll(async () => {
  source = await assemble(`(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "\\10\\00\\00\\00\\04\\00\\00\\00")
    (func (export "trap") unreachable)
    (func (export "fail") (result i32) (i32.const 1))
    (func (export "endless") (loop (br 0)))
    (func (export "silent"))
    (func $print (param $descriptor i32)
      (drop (call $write (local.get $descriptor) (i32.const 16) (i32.const 1) (i32.const 32))))
    (func (export "panic") (call $print (i32.const 2)) unreachable)
    (func (export "print") (call $print (i32.const 2)))
    (func (export "print_and_trap") (call $print (i32.const 1)) unreachable))`)
})

const open = (options) => createPlugin(source, { useWasi: true, ...options })

describe('PluginError and ErrorCode', () => {
  const binding = require('../binding.js')

  test('tell the errors of this library from others', async () => {
    const plugin = await open()
    const errors = [
      await plugin.call('trap').catch((error) => error),
      await plugin.call('silent', 42).catch((error) => error),
      await createPlugin('/no/such/file.wasm').catch((error) => error)
    ]
    for (const error of errors) expect(error instanceof PluginError).toBe(true)
    expect(errors[1] instanceof TypeError).toBe(true)
    for (const other of [new Error('mine'), new TypeError('mine'), { code: 'TRAP' }, null, undefined, 'TRAP']) expect(other instanceof PluginError).toBe(false)
    await plugin.close()
  })

  test('have each code of the native part and of the types', () => {
    expect(Object.keys(ErrorCode)).toEqual(expect.arrayContaining(binding.errorCodes()))
    for (const [name, code] of Object.entries(ErrorCode)) expect(code).toBe(name)
    const types = readFileSync(require.resolve('../index.d.ts'), 'utf8')
    const union = /export type ErrorCode =([^]*?)\n\n/.exec(types)[1]
    expect([...union.matchAll(/\| '([A-Z_]+)'/g)].map(([, code]) => code).sort()).toEqual(Object.keys(ErrorCode).sort())
    expect(Object.isFrozen(ErrorCode)).toBe(true)
  })
})

describe('the URL of an error\'s documentation', () => {
  test('leads to the section of its code, and stays out of logs', async () => {
    const error = await createPlugin('/no/such/file.wasm').catch((error) => error)
    expect(error.docs).toBe('https://github.com/extism-host/extism-host/blob/main/docs/reference/errors.md#file_not_found')
    expect(Object.keys(error)).toEqual(['code'])
    expect(inspect(error)).not.toContain('docs')
  })

  test('has an anchor on the page for each code', () => {
    const page = readFileSync(require.resolve('../docs/reference/errors.md'), 'utf8')
    const anchors = [...page.matchAll(/<a id="(\w+)">/g)].map(([, id]) => id)
    for (const code of [...Object.keys(ErrorCode), 'NOT_INSTALLED']) expect(anchors).toContain(codedError(code, '').docs.split('#')[1])
  })
})

describe('the return code of an error', () => {
  test('is what the function returned, or exited with', async () => {
    const wasm = await assemble(`(module
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (import "extism:host/env" "error_set" (func $error (param i64)))
      (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
      (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
      (memory (export "memory") 1)
      (func $fail (local $block i64)
        (local.set $block (call $alloc (i64.const 2)))
        (call $store (local.get $block) (i32.const 65))
        (call $error (local.get $block)))
      (func (export "one") (result i32) (i32.const 1))
      (func (export "negative") (result i32) (i32.const -7))
      (func (export "told") (result i32) (call $fail) (i32.const 3))
      (func (export "silent") (call $fail))
      (func (export "exit") (call $exit (i32.const 42))))`)
    const plugin = await createPlugin(wasm, { useWasi: true })
    for (const [name, returnCode] of Object.entries({ one: 1, negative: -7, told: 3, silent: 0, exit: 42 })) {
      await expect(plugin.call(name)).rejects.toMatchObject({ code: 'PLUGIN_ERROR', returnCode, message: expect.stringMatching(/^Plugin-originated error: /) })
    }
    expect((await plugin.call('told').catch((error) => error)).message).toBe('Plugin-originated error: A\0')
    expect((await plugin.call('nothing').catch((error) => error)).returnCode).toBeUndefined()
    await plugin.close()
  })
})

describe('a message names the culprit', () => {
  test('the host function that returned something wrong', async () => {
    const wasm = await assemble(`(module
      (import "extism:host/user" "ask" (func $ask (result i64)))
      (import "shop" "price" (func $price (result f64)))
      (func (export "ask") (drop (call $ask)))
      (func (export "price") (drop (call $price))))`)
    const plugin = await createPlugin(wasm, { functions: { 'extism:host/user': { ask: () => ({}) }, shop: { price: () => Symbol('free') } } })
    await expect(plugin.call('ask')).rejects.toThrow('the host function "extism:host/user" "ask" must return an offset (a bigint), a string or bytes, not an instance of Object')
    await expect(plugin.call('price')).rejects.toThrow('the host function "shop" "price" must return a number, not a symbol')
    await plugin.close()
    const asynchronous = await createPlugin(wasm, { functions: { 'extism:host/user': { ask: async () => 1n }, shop: { price: () => 1 } } })
    expect(() => asynchronous.callSync('ask')).toThrow('asynchronous host function "extism:host/user" "ask"')
    await asynchronous.close()
  })

  test('all missing imports, with their types and similar names', async () => {
    const wasm = await assemble(`(module
      (import "extism:host/usr" "lookup" (func (param i64) (result i64)))
      (import "extism:host/user" "lokup" (func (param i64) (result i64)))
      (import "env" "frobnicate" (func (param i32 f64)))
      (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))`)
    const { code, message } = await createPlugin(wasm, { functions: { 'extism:host/user': { lookup () {} } } }).catch((error) => error)
    expect(code).toBe('MISSING_IMPORT')
    const lines = message.split('\n')
    expect(lines).toHaveLength(4)
    for (const line of lines) expect(line).toMatch(/^from module "main": cannot resolve import "/)
    expect(lines[0]).toMatch(/"lookup".*it is a function \(i64\) -> \(?i64\)?; did you mean "extism:host\/user" "lookup"\?$/)
    expect(lines[1]).toMatch(/; did you mean "lookup"\?$/)
    expect(lines[2]).toMatch(/"frobnicate".*it is a function \(i32, f64\) -> \(\)$/)
    expect(lines[3]).toMatch(/: pass `useWasi: true` to give the plugin WASI$/)
  })

  test('up to twenty of the missing imports', async () => {
    const wasm = await assemble(`(module ${Array.from({ length: 30 }, (_, index) => `(import "shop" "f${index}" (func))`).join('')})`)
    const lines = (await createPlugin(wasm).catch(({ message }) => message)).split('\n')
    expect([lines.length, lines.at(-1)]).toEqual([21, 'and 10 more imports'])
  })

  test('the existing functions, and the time limit', async () => {
    const plugin = await open()
    await expect(plugin.call('pinic')).rejects.toThrow('Plugin error: function "pinic" does not exist; there are "endless", "fail", "panic", "print", "print_and_trap", "silent", "trap"')
    await expect(plugin.call('endless', '', null, { timeoutMs: 30 })).rejects.toThrow('EXTISM: call canceled due to timeout: it ran for longer than 30 ms')
    await plugin.close()
    const many = await createPlugin(await assemble(`(module ${Array.from({ length: 25 }, (_, index) => `(func (export "f${index}"))`).join('')})`))
    await expect(many.call('f')).rejects.toThrow(/"f9"|and 5 more$/)
    await many.close()
    const none = await createPlugin(await assemble('(module)'))
    await expect(none.call('f')).rejects.toThrow('does not exist; the plugin exports no functions that can be called')
    await none.close()
  })
})

describe('an error of a call', () => {
  test('names the plugin and the function for every kind of error', async () => {
    const plugin = await open({ name: 'greeter', maxQueue: 1 })
    const errors = {
      TIMEOUT: plugin.call('endless', undefined, undefined, { timeoutMs: 20 }),
      QUEUE_FULL: plugin.call('silent'),
      INVALID_ARGUMENT: plugin.call('silent', 42),
      FUNCTION_NOT_FOUND: plugin.call('nothing')
    }
    const expectNames = async (code, call) => {
      await expect(call).rejects.toMatchObject({ code, plugin: 'greeter', function: expect.any(String) })
    }
    for (const [code, call] of Object.entries(errors)) await expectNames(code, call)
    await expectNames('PLUGIN_ERROR', plugin.call('fail'))
    await expectNames('TRAP', plugin.call('trap'))
    const sync = (...args) => { try { plugin.callSync(...args) } catch (error) { return error } }
    expect(sync('trap')).toMatchObject({ code: 'TRAP', plugin: 'greeter', function: 'trap' })
    expect(sync('nothing')).toMatchObject({ code: 'FUNCTION_NOT_FOUND', plugin: 'greeter', function: 'nothing' })
    await plugin.close()
    await expectNames('CLOSED', plugin.call('silent'))
  })

  test('calls a plugin without a name by its main module', async () => {
    const nameOf = async (source, options) => {
      const plugin = await createPlugin(source, { useWasi: true, ...options })
      const { plugin: name } = await plugin.call('nothing').catch((error) => error)
      await plugin.close()
      return name
    }
    expect(await nameOf(require.resolve('../plugins/visits-rust/visits.wasm'))).toBe('visits')
    expect(await nameOf({ wasm: [{ data: source, name: 'counter' }] })).toBe('counter')
    expect(await nameOf(source)).toBe('main')
  })

  test('of a host function is the error that the function has thrown, unchanged', async () => {
    const thrown = Object.assign(new Error('no'), { code: 'CLOSED' })
    const { stack } = thrown
    const caller = await createPlugin(await assemble(`(module
      (import "extism:host/user" "refuse" (func $refuse))
      (func (export "run") (call $refuse)))`), { functions: { 'extism:host/user': { refuse () { throw thrown } } } })
    expect(await caller.call('run').catch((error) => error)).toBe(thrown)
    expect(() => caller.callSync('run')).toThrow(thrown)
    expect(thrown.stack).toBe(stack)
    expect(thrown).not.toHaveProperty('plugin')
    await caller.close()
  })
})

describe('the stack of an error', () => {
  let plugin

  beforeAll(async () => { plugin = await open() })
  afterAll(() => plugin.close())

  const frames = (error) => error.stack.split('\n').filter((line) => line.startsWith('    at '))

  test.each([['trap', undefined], ['fail', undefined], ['nothing', undefined], ['silent', 42]])('of a call of %s begins with the code that awaits it', async (name, input) => {
    async function whoAwaits () {
      await plugin.call(name, input)
    }
    // Alone, among others, and after a while.
    const results = await Promise.allSettled([whoAwaits(), whoAwaits(), new Promise((resolve) => setTimeout(resolve, 5)).then(whoAwaits)])
    for (const { reason } of results) expect(frames(reason)[0]).toContain('errors.test.js')
  })

  test('of a synchronous call begins with its caller', () => {
    function caller (name) {
      plugin.callSync(name)
    }
    for (const name of ['trap', 'nothing']) {
      let error
      try { caller(name) } catch (thrown) { error = thrown }
      expect(frames(error)[0]).toContain('errors.test.js')
    }
  })

  test('of createPlugin names the code that awaits it', async () => {
    async function whoAwaits () {
      await createPlugin('there-is-no-such-file.wasm')
    }
    const error = await whoAwaits().catch((error) => error)
    expect(error).toMatchObject({ code: 'FILE_NOT_FOUND' })
    expect(error.stack).toContain('errors.test.js')
  })
})

test('a call that was aborted rejects with the reason only, though its guest ends with an error', async () => {
  const { code, output } = await runNode(['-e', `
    const { createPlugin } = require('.')
    createPlugin(Buffer.from('${source.toString('base64')}', 'base64'), { useWasi: true }).then(async (plugin) => {
      const controller = new AbortController()
      setTimeout(() => controller.abort(new Error('enough')), 5)
      await plugin.call('endless', undefined, undefined, { signal: controller.signal }).catch((error) => console.log(error.message))
      await plugin.call('silent')
    })`])
  // An unhandled rejection would end it with 1.
  expect({ code, output }).toEqual({ code: 0, output: 'enough\n' })
})

describe('a trap after output on standard error', () => {
  test.each([[undefined, true], ['logger', false]])('with enableWasiOutput %s has a hint: %s', async (enableWasiOutput, hasHint) => {
    const plugin = await open({ enableWasiOutput })
    const { message } = await plugin.call('panic').catch((error) => error)
    expect(message.includes('enableWasiOutput')).toBe(hasHint)
    await plugin.close()
  })

  test('has no hint if the output was that of another call, or on standard output', async () => {
    const plugin = await open()
    await plugin.call('print')
    for (const name of ['trap', 'print_and_trap']) {
      const { message } = await plugin.call(name).catch((error) => error)
      expect(message).not.toContain('enableWasiOutput')
    }
    await plugin.close()
  })
})
