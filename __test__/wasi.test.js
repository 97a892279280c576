'use strict'

const { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join, relative } = require('node:path')
const { precompile } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { runNode } = require('./support/processes.js')

const open = pluginsOfEachTest()

let wasm
beforeAll(async () => { wasm = await guest('wasi') })

let directory
beforeAll(() => {
  directory = realpathSync(mkdtempSync(join(tmpdir(), 'extism-host-wasi-')))
  mkdirSync(join(directory, 'data'))
  mkdirSync(join(directory, 'other'))
  writeFileSync(join(directory, 'data', 'hello.txt'), 'hello world!')
  writeFileSync(join(directory, 'secret.txt'), 'secret')
  symlinkSync(join(directory, 'secret.txt'), join(directory, 'data', 'link.txt'))
  symlinkSync('../secret.txt', join(directory, 'data', 'relative-link.txt'))
})
afterAll(() => rmSync(directory, { recursive: true, maxRetries: 10 }))

const data = () => join(directory, 'data')
const withPaths = (allowedPaths, options) => open(wasm, { useWasi: true, allowedPaths, ...options })
const refusal = (code, message) => expect.objectContaining({ code, message: expect.stringContaining(message) })

describe('files', () => {
  test('are read through a directory that is allowed', async () => {
    const plugin = await withPaths({ [data()]: '/mnt' })
    expect((await plugin.call('read', 'hello.txt')).text()).toBe('hello world!')
  })

  test('are those of a manifest unless there is an option', async () => {
    for (const key of ['allowedPaths', 'allowed_paths']) {
      const plugin = await open({ wasm: [{ data: wasm }], [key]: { [data()]: '/mnt' } }, { useWasi: true })
      expect((await plugin.call('read', 'hello.txt')).text()).toBe('hello world!')
    }
    const plugin = await open({ wasm: [{ data: wasm }], allowedPaths: { [data()]: '/mnt' } }, { useWasi: true, allowedPaths: { [join(directory, 'other')]: '/mnt' } })
    await expect(plugin.call('read', 'hello.txt')).rejects.toThrow('code 44')
  })

  test('are made and written, but not where they may only be read', async () => {
    const plugin = await withPaths({ [data()]: '/mnt' })
    await plugin.call('make', 'new.txt')
    expect(readFileSync(join(data(), 'new.txt'), 'utf8')).toBe('new')
    for (const allowedPaths of [{ [`ro:${data()}`]: '/mnt' }, [{ host: data(), guest: '/mnt', readOnly: true }]]) {
      const plugin = await withPaths(allowedPaths)
      expect((await plugin.call('read', 'hello.txt')).text()).toBe('hello world!')
      await expect(plugin.call('make', 'other.txt')).rejects.toThrow(/code (63|69|76)/)
    }
    expect(() => readFileSync(join(data(), 'other.txt'))).toThrow('ENOENT')
  })

  test.each([{}, { readOnly: false }])('are written through one of an array that is not read-only: %j', async (rights) => {
    const host = mkdtempSync(join(directory, 'writable-'))
    const plugin = await withPaths([{ host, guest: '/mnt', ...rights }])
    await plugin.call('make', 'new.txt')
    expect(readFileSync(join(host, 'new.txt'), 'utf8')).toBe('new')
  })

  test.each(['../secret.txt', 'link.txt', 'relative-link.txt', '/etc/passwd', '../../../../etc/passwd'])('outside of it are out of reach: %s', async (path) => {
    const plugin = await withPaths({ [data()]: '/mnt' })
    await expect(plugin.call('read', path)).rejects.toMatchObject({ code: 'PLUGIN_ERROR' })
  })

  test('do not exist unless a directory is allowed', async () => {
    const plugin = await open(wasm, { useWasi: true })
    await expect(plugin.call('read', 'hello.txt')).rejects.toThrow('code 8')
  })

  test('one directory may have several names', async () => {
    const plugin = await withPaths([{ host: data(), guest: '/one' }, { host: data(), guest: '/two' }])
    expect((await plugin.call('read', 'hello.txt')).text()).toBe('hello world!')
  })
})

describe('the order of allowedPaths', () => {
  test('of the JavaScript SDK is recognized by a relative path of this machine, with one warning', async () => {
    const { code, output, errors } = await runNode(['-e', `
      const { createPlugin } = require('.')
      const wasm = Buffer.from('${wasm.toString('base64')}', 'base64')
      const options = { useWasi: true, allowedPaths: { '/mnt': '${relative(join(__dirname, '..'), data())}' } }
      Promise.all([createPlugin(wasm, options), createPlugin(wasm, options)]).then(async (plugins) => {
        for (const plugin of plugins) console.log((await plugin.call('read', 'hello.txt')).text())
        await plugins[0].call('make', 'new-too.txt')
      })`])
    expect({ code, output }).toEqual({ code: 0, output: 'hello world!\nhello world!\n' })
    expect(readFileSync(join(data(), 'new-too.txt'), 'utf8')).toBe('new')
    expect(errors.match(/EXTISM_HOST_ALLOWED_PATHS/g)).toHaveLength(1)
  })

  test('is never guessed', async () => {
    const other = join(directory, 'other')
    const missing = join(directory, 'missing')
    await expect(withPaths({ [missing]: data() })).rejects.toEqual(refusal('INVALID_ARGUMENT', 'put it first'))
    await expect(withPaths({ [missing]: '/mnt-of-guest' })).rejects.toEqual(refusal('INVALID_ARGUMENT', 'is not a directory'))
    await expect(withPaths({ [`ro:${missing}`]: '/mnt' })).rejects.toEqual(refusal('INVALID_ARGUMENT', 'is not a directory'))
    const plugin = await withPaths([{ host: data(), guest: other }])
    expect((await plugin.call('read', 'hello.txt')).text()).toBe('hello world!')
  })

  test('is the documented one if both are possible, with a warning', async () => {
    const { code, output, errors } = await runNode(['-e', `
      const { createPlugin } = require('.')
      const wasm = Buffer.from('${wasm.toString('base64')}', 'base64')
      createPlugin(wasm, { useWasi: true, allowedPaths: { '${data()}': '${directory}' } }).then(async (plugin) => {
        console.log((await plugin.call('read', 'hello.txt')).text())
      })`])
    expect({ code, output }).toEqual({ code: 0, output: 'hello world!\n' })
    expect(errors).toContain('EXTISM_HOST_ALLOWED_PATHS')
    expect(errors).toContain(`uses "${data()}" as this machine's. Write [{ host: "${data()}", guest: "${directory}" }] to be explicit`)
  })

  test('is rejected like in the JavaScript SDK if it has a read-only directory last', async () => {
    const error = await withPaths({ '/mnt': 'ro:tests/data' }).catch((error) => error)
    expect(error.message).toBe('Readonly dirs are not supported: ro:tests/data')
    expect(error.cause.message).toContain('"ro:tests/data": "/mnt"')
  })

  test.each([
    ['paths', 'must be an object'],
    [[{ host: '/' }], 'guest of allowedPaths[0]'],
    [[{ host: '/no/such/directory', guest: '/' }], 'is not a directory'],
    [[{ host: __filename, guest: '/' }], 'is not a directory'],
    [[{ host: '/', guest: '/', mode: 1 }], 'has no "mode"'],
    [[{ host: '/', guest: '/', readOnly: 1 }], 'must be a boolean'],
    [{ '': '/' }, 'must be a path'],
    [{ '/': 1 }, 'must be a path'],
    [{ '/\0': '/' }, 'NUL']
  ])('%j is refused', async (allowedPaths, message) => {
    await expect(withPaths(allowedPaths)).rejects.toEqual(refusal('INVALID_ARGUMENT', message))
  })

  test('makes no difference to precompile, but WASI does to createPlugin', async () => {
    await precompile(wasm, { useWasi: true, allowedPaths: { '/no/such/directory': '/' }, compileCache: { directory: join(directory, 'cache') } })
    await expect(withPaths({ [data()]: '/mnt' }, { useWasi: false })).rejects.toEqual(refusal('INVALID_ARGUMENT', 'useWasi: true'))
  })
})

describe('standard output and error', () => {
  const write = (options, env) => runNode(['-e', `
    const { createPlugin } = require('.')
    const wasm = Buffer.from('${wasm.toString('base64')}', 'base64')
    createPlugin(wasm, { useWasi: true, ...${JSON.stringify(options)} }).then(async (plugin) => {
      const written = await plugin.call('write_output', 'to output 👋\\n')
      if (written.getUint32(0, true) !== 15) throw new Error('not all is said to be written')
      await plugin.call('write_error', 'to error\\n')
      await plugin.call('write_output', 'no line')
    })`], { env: { EXTISM_ENABLE_WASI_OUTPUT: undefined, ...env } })

  test('are those of the process with enableWasiOutput: true', async () => {
    const both = { code: 0, signal: null, output: 'to output 👋\nno line', errors: 'to error\n' }
    expect(await write({ enableWasiOutput: true })).toEqual(both)
    expect(await write({}, { EXTISM_ENABLE_WASI_OUTPUT: '1' })).toEqual(both)
  })

  test.each([
    [{}, {}],
    [{}, { EXTISM_ENABLE_WASI_OUTPUT: '' }],
    [{ enableWasiOutput: false }, { EXTISM_ENABLE_WASI_OUTPUT: '1' }]
  ])('go nowhere with %j and %j', async (options, env) => {
    expect(await write(options, env)).toEqual({ code: 0, signal: null, output: '', errors: '' })
  })

  test('are set for each plugin', async () => {
    const { output } = await runNode(['-e', `
      const { createPlugin } = require('.')
      const wasm = Buffer.from('${wasm.toString('base64')}', 'base64')
      Promise.all([true, false].map((enableWasiOutput) => createPlugin(wasm, { useWasi: true, enableWasiOutput }))).then(async ([on, off]) => {
        await off.call('write_output', 'off')
        await on.call('write_output', 'on')
        await off.call('write_output', 'off')
      })`])
    expect(output).toBe('on')
  })

  test('go to the logger line by line, and an unfinished line at the end of its call', async () => {
    const messages = []
    const logger = { info: (message) => messages.push(`info: ${message}`), warn () {}, error: (message) => messages.push(`error: ${message}`) }
    const plugin = await open(wasm, { useWasi: true, enableWasiOutput: 'logger', logger, logLevel: 'info' })
    await plugin.call('write_output', 'one\ntwo\n\nthree')
    await plugin.call('write_error', 'four')
    await expect(plugin.call('write_and_trap', 'five')).rejects.toMatchObject({ code: 'TRAP' })
    expect(messages).toEqual(['info: one', 'info: two', 'info: ', 'info: three', 'error: four', 'info: five'])
    messages.length = 0
    await plugin.call('write_output', 'x'.repeat(150_000))
    expect(messages.map((message) => message.length - 'info: '.length)).toEqual([65_536, 65_536, 18_928])
  })

  test('cannot be moved, closed or mistaken for a file', async () => {
    const messages = []
    const plugin = await withPaths({ [data()]: '/mnt' }, { enableWasiOutput: 'logger', logLevel: 'info', logger: { info: (message) => messages.push(message), warn () {}, error () {} } })
    for (const name of ['move_output', 'move_onto_output', 'close_output', 'close_nothing']) {
      await expect(plugin.call(name)).rejects.toThrow('code 8')
    }
    await plugin.call('write_output', 'still there')
    expect(messages).toEqual(['still there'])
  })

  test.each([true, false])('are safe from guests that lie about their memory (with output: %p)', async (isOn) => {
    const plugin = await open(wasm, { useWasi: true, enableWasiOutput: isOn ? 'logger' : false })
    await expect(plugin.call('bad_vectors')).rejects.toMatchObject({ code: 'TRAP' })
    await expect(plugin.call('huge_length')).rejects.toThrow('code 28')
    await expect(plugin.call('many_vectors')).rejects.toThrow('code 28')
    await expect(plugin.call('bad_result')).rejects.toMatchObject({ code: 'TRAP' })
    if (isOn) await expect(plugin.call('bad_pointer')).rejects.toMatchObject({ code: 'TRAP' })
    expect(await plugin.call('write_error', 'good')).toBeNull()
  })

  test('are found by a module that imports the same function twice', async () => {
    const messages = []
    const twice = await assemble(`(module
      (import "wasi_snapshot_preview1" "fd_write" (func $one (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_write" (func $two (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\\10\\00\\00\\00\\03\\00\\00\\00")
      (data (i32.const 16) "abc")
      (func (export "run") (result i32)
        (i32.or
          (call $one (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32))
          (call $two (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))`)
    const plugin = await open(twice, { useWasi: true, enableWasiOutput: 'logger', logLevel: 'info', logger: { info: (message) => messages.push(message), warn () {}, error () {} } })
    await plugin.call('run')
    expect(messages).toEqual(['abcabc'])
  })

  test('of several modules are one', async () => {
    const messages = []
    const main = await assemble(`(module
      (import "side" "write_error" (func $write (result i32)))
      (memory (export "memory") 1)
      (func (export "run") (result i32) (call $write)))`)
    const plugin = await open({ wasm: [{ data: wasm, name: 'side' }, { data: main, name: 'main' }] }, { useWasi: true, enableWasiOutput: 'logger', logLevel: 'error', logger: { error: (message) => messages.push(message) } })
    await plugin.call('run', 'from the side')
    expect(messages).toEqual(['from the side'])
  })

  test.each([1, 'on', {}])('enableWasiOutput cannot be %j', async (enableWasiOutput) => {
    await expect(open(wasm, { enableWasiOutput })).rejects.toEqual(refusal('INVALID_ARGUMENT', 'enableWasiOutput must be'))
  })
})

describe('arguments and environment', () => {
  test('are empty unless they are given', async () => {
    const plugin = await open(wasm, { useWasi: true })
    expect(await plugin.call('arguments')).toBeNull()
    expect(await plugin.call('environment')).toBeNull()
  })

  test('are those of the option', async () => {
    const plugin = await open(wasm, { useWasi: true, wasi: { args: ['plugin', '--loud', '👋'], env: { NAME: 'Jane Doe', EMPTY: '' } } })
    expect((await plugin.call('arguments')).text()).toBe('plugin\0--loud\0👋\0')
    expect((await plugin.call('environment')).text().split('\0').filter(Boolean).sort()).toEqual(['EMPTY=', 'NAME=Jane Doe'])
  })

  test.each([
    [{ args: 'plugin' }, 'wasi.args must be'],
    [{ args: ['a\0b'] }, 'wasi.args must be'],
    [{ env: { 'A=B': 'c' } }, 'wasi.env must be'],
    [{ env: { A: 1 } }, 'wasi.env must be'],
    [{ args: ['x'.repeat(70_000)] }, 'are allowed'],
    [{ stdin: 'x' }, 'has no "stdin"']
  ])('%j is refused', async (wasi, message) => {
    await expect(open(wasm, { useWasi: true, wasi })).rejects.toEqual(refusal('INVALID_ARGUMENT', message))
  })
})
