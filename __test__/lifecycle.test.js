'use strict'

const { createPlugin } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { runNode } = require('./support/processes.js')

let wasm

beforeAll(async () => { wasm = await guest('many') })

describe('close', () => {
  test('lets the calls that were accepted end, and refuses new ones', async () => {
    const plugin = await createPlugin(wasm)
    const accepted = [plugin.call('compute', new Uint8Array([8])), plugin.call('echo', 'queued')]
    const closed = plugin.close()
    await expect(plugin.call('echo', 'too late')).rejects.toMatchObject({ code: 'CLOSED' })
    await expect(accepted[0]).resolves.toBeNull()
    expect((await accepted[1]).text()).toBe('queued')
    await closed
    await expect(plugin.call('echo', 'later still')).rejects.toMatchObject({ code: 'CLOSED' })
    await expect(plugin.functionExists('echo')).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test('can be called again, and at once', async () => {
    const plugin = await createPlugin(wasm, { instances: 2 })
    await Promise.all([plugin.close(), plugin.close()])
    await expect(plugin.close()).resolves.toBeUndefined()
  })

  test('is what Symbol.asyncDispose does', async () => {
    const plugin = await createPlugin(wasm)
    await plugin[Symbol.asyncDispose]()
    await expect(plugin.call('echo')).rejects.toMatchObject({ code: 'CLOSED' })
  })
})

describe('close with timeoutMs', () => {
  test('interrupts running calls then, and ends queued ones: with CLOSED', async () => {
    const plugin = await createPlugin(wasm, { instances: 2, maxQueue: 10 })
    const calls = Array.from({ length: 5 }, () => plugin.call('loop_for_ever'))
    const ended = Promise.allSettled(calls)
    await plugin.close({ timeoutMs: 50 })
    expect((await ended).map(({ reason }) => reason.code)).toEqual(Array(5).fill('CLOSED'))
    expect(plugin.stats().instances).toBe(0)
  })

  test('lets calls end that do in time', async () => {
    const plugin = await createPlugin(wasm)
    const call = plugin.call('compute', new Uint8Array([8]))
    await plugin.close({ timeoutMs: 60_000 })
    await expect(call).resolves.toBeNull()
  })

  test('limits the time of a close that is already waiting', async () => {
    const plugin = await createPlugin(wasm)
    const call = plugin.call('loop_for_ever').catch(({ code }) => code)
    const closed = plugin.close()
    await Promise.all([plugin.close({ timeoutMs: 60_000 }), plugin.close({ timeoutMs: 0 }), closed])
    expect(await call).toBe('CLOSED')
  })

  test('gives up host functions that do not return', async () => {
    const plugin = await createPlugin(await assemble(`(module
      (import "extism:host/user" "wait" (func $wait))
      (func (export "wait") (call $wait)))`), { functions: { 'extism:host/user': { wait: () => new Promise(() => {}) } } })
    const call = plugin.call('wait').catch(({ code }) => code)
    await plugin.close({ timeoutMs: 50 })
    expect(await call).toBe('CLOSED')
  })

  test('keeps no process alive once the plugin is closed', async () => {
    const { code, output } = await runNode(['-e', `
      require('.').createPlugin(Buffer.from('${wasm.toString('base64')}', 'base64'))
        .then((plugin) => plugin.close({ timeoutMs: 2_000_000_000 })).then(() => console.log('closed'))`])
    expect({ code, output }).toEqual({ code: 0, output: 'closed\n' })
  })

  test.each([[{ timeoutMs: -1 }], [{ timeoutMs: 0.5 }], [{ timeoutMs: 2 ** 31 }], [{ timeout: 1 }], [1]])('refuses %j', async (options) => {
    const plugin = await createPlugin(wasm)
    await expect(plugin.close(options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect((await plugin.call('echo', 'still open')).text()).toBe('still open')
    await plugin.close()
  })

  test('is what Symbol.asyncDispose does, with 10 seconds', async () => {
    const plugin = await createPlugin(wasm)
    const close = jest.spyOn(plugin, 'close')
    await plugin[Symbol.asyncDispose]()
    expect(close).toHaveBeenCalledWith({ timeoutMs: 10_000 })
  })
})

test('a plugin that is being opened hinders no call of another', async () => {
  const plugin = await createPlugin(wasm)
  const opening = [createPlugin(wasm), createPlugin(wasm)]
  for (let call = 0; call < 20; call++) {
    expect((await plugin.call('echo', `call ${call}`)).text()).toBe(`call ${call}`)
  }
  const opened = await Promise.all(opening)
  await Promise.all([plugin, ...opened].map((plugin) => plugin.close()))
})

describe('a process', () => {
  const open = (code) => runNode(['-e', `
    const { createPlugin } = require('.')
    createPlugin(Buffer.from('${wasm.toString('base64')}', 'base64'), { instances: 2 }).then(async (plugin) => {
      ${code}
    })`])

  test('with an idle, open plugin exits by itself', async () => {
    const { code, output, errors } = await open("console.log((await plugin.call('echo', 'hello')).text())")
    expect({ code, output, errors }).toEqual({ code: 0, output: 'hello\n', errors: '' })
  })

  test('with a call pending waits for it', async () => {
    const { code, output } = await open(
      "plugin.call('compute', new Uint8Array([20])).then(() => console.log('done'))"
    )
    expect({ code, output }).toEqual({ code: 0, output: 'done\n' })
  })

  test('that fails in many ways prints nothing', async () => {
    const { code, output, errors } = await open(`
      for (const name of ['trap', 'recurse', 'grow_for_ever', 'fail', 'return_three', 'nothing']) {
        await plugin.call(name, 'x').catch(() => {})
      }
      await plugin.close()`)
    expect({ code, output, errors }).toEqual({ code: 0, output: '', errors: '' })
  })

  test('that calls process.exit() with calls running and queued ends with that code', async () => {
    const { code, signal } = await open(`
      for (let i = 0; i < 10; i++) plugin.call('loop_for_ever')
      setTimeout(() => process.exit(7), 50)`)
    expect({ code, signal }).toEqual({ code: 7, signal: null })
  })

  test('that is ended by an uncaught exception with calls running and queued ends with code 1', async () => {
    const { code, signal, errors } = await open(`
      for (let i = 0; i < 10; i++) plugin.call('loop_for_ever')
      setTimeout(() => { throw new Error('nobody catches this') }, 50)`)
    expect({ code, signal }).toEqual({ code: 1, signal: null })
    expect(errors).toContain('nobody catches this')
  })

  test('that calls process.exit() while plugins are being opened ends at once', async () => {
    const endless = await assemble(`(module
      (func (export "_initialize") (loop $again (br $again)))
      (func (export "run") (result i32) (i32.const 0)))`)
    const started = performance.now()
    const { code, signal, output } = await runNode(['-e', `
      const { createPlugin } = require('.')
      const wasm = Buffer.from('${endless.toString('base64')}', 'base64')
      for (let i = 0; i < 5; i++) createPlugin(wasm)
      // Not delayed by them either: they take none of the threads that Node itself needs.
      require('node:fs').readFile('package.json', () => setTimeout(() => {
        console.log('leaving')
        process.exit(7)
      }, 50))`])
    expect({ code, signal, output }).toEqual({ code: 7, signal: null, output: 'leaving\n' })
    // An initialization that is waited for would take 30 s.
    expect(performance.now() - started).toBeLessThan(20_000)
  }, 60_000)

  test('that is ended by SIGTERM with calls running and queued ends by that signal', async () => {
    const { code, signal } = await open(`
      for (let i = 0; i < 10; i++) plugin.call('loop_for_ever')
      setTimeout(() => process.kill(process.pid, 'SIGTERM'), 50)`)
    expect({ code, signal }).toEqual({ code: null, signal: 'SIGTERM' })
  })

  test('that terminates worker threads with calls running and queued goes on, and ends with code 0', async () => {
    const { code, signal, output, errors } = await runNode(['-e', `
      const { Worker } = require('node:worker_threads')
      const body = \`
        const { parentPort, workerData } = require('node:worker_threads')
        const { createPlugin } = require(workerData.module)
        createPlugin(workerData.wasm, { instances: 2 }).then(async (plugin) => {
          await plugin.call('echo', 'x')
          for (let i = 0; i < 10; i++) plugin.call(i % 2 ? 'loop_for_ever' : 'echo', 'x')
          parentPort.postMessage('running')
        })\`
      const wasm = Buffer.from('${wasm.toString('base64')}', 'base64')
      async function round () {
        const workers = Array.from({ length: 3 }, () => new Worker(body, { eval: true, workerData: { module: process.cwd(), wasm } }))
        await Promise.all(workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))))
        await Promise.all(workers.map((worker) => worker.terminate()))
      }
      async function cpuOf (milliseconds) {
        const before = process.cpuUsage()
        await new Promise((resolve) => setTimeout(resolve, milliseconds))
        const { user, system } = process.cpuUsage(before)
        return (user + system) / 1000 / milliseconds
      }
      round().then(round).then(round).then(() => cpuOf(500)).then((share) => {
        // The guests that looped have been interrupted with their threads.
        console.log(share < 0.5 ? 'quiet' : 'busy: ' + share)
      })`])
    expect({ code, signal, output, errors }).toEqual({ code: 0, signal: null, output: 'quiet\n', errors: '' })
  })

  const ASKING = `
    const { createPlugin } = require(module)
    const wasm = Buffer.from(base64, 'base64')
    const functions = { 'extism:host/user': { ask: () => new Promise((resolve) => setTimeout(resolve, 100_000).unref()) }, numbers: { mix () {}, i32 () {}, f32 () {}, nothing () {} } }
    createPlugin(wasm, { instances: 2, eager: true, functions }).then((plugin) => {
      for (let i = 0; i < 10; i++) plugin.call('ask')
      setTimeout(leave, 50)
    })`

  test('that calls process.exit() while guests wait for host functions ends with that code', async () => {
    const base64 = (await guest('asking')).toString('base64')
    const { code, signal, errors } = await runNode(['-e', `
      const module = '.'; const base64 = '${base64}'; const leave = () => process.exit(7)
      ${ASKING}`])
    expect({ code, signal, errors }).toEqual({ code: 7, signal: null, errors: '' })
  })

  test('that terminates worker threads whose guests wait for host functions goes on', async () => {
    const base64 = (await guest('asking')).toString('base64')
    const { code, signal, output, errors } = await runNode(['-e', `
      const { Worker } = require('node:worker_threads')
      const body = \`
        const { parentPort, workerData: { module, base64 } } = require('node:worker_threads')
        const leave = () => parentPort.postMessage('waiting')
        ${ASKING}\`
      async function round () {
        const workers = Array.from({ length: 3 }, () => new Worker(body, { eval: true, workerData: { module: process.cwd(), base64: '${base64}' } }))
        await Promise.all(workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))))
        await Promise.all(workers.map((worker) => worker.terminate()))
      }
      round().then(round).then(() => console.log('still here'))`])
    expect({ code, signal, output, errors }).toEqual({ code: 0, signal: null, output: 'still here\n', errors: '' })
  })

  test('in ESM has the exports by name', async () => {
    const { code, output } = await runNode(['--input-type=module', '-e', `
      import { createPlugin, precompile, MemoryStore, Plugin, PluginOutput } from 'extism-host'
      console.log([createPlugin, precompile, MemoryStore, Plugin, PluginOutput].map((value) => typeof value).join())`])
    expect({ code, output }).toEqual({ code: 0, output: 'function,function,function,function,function\n' })
  })
})
