'use strict'

const { createPlugin } = require('..')
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

describe('an error of a call', () => {
  test('names the plugin and the function, whatever the reason', async () => {
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

  test('of a host function is what the function has thrown, unchanged', async () => {
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

  test.each([['trap', undefined], ['fail', undefined], ['nothing', undefined], ['silent', 42]])('of a call of %s names who awaits it first', async (name, input) => {
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

  test('of createPlugin names who awaits it', async () => {
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
