'use strict'

// An instance that works is replaced between two calls before it is full, has served too many calls, or is too old.

const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { assemble, guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { until } = require('./support/until.js')

const open = pluginsOfEachTest()

let many
beforeAll(async () => { many = await guest('many') })

/** A guest whose `run` tells in two bytes how often its instance has been called, after `body` has run. */
function counter (body = '', more = '') {
  return assemble(`(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (import "extism:host/user" "begin" (func $begin))
    (memory 1)
    (global $calls (mut i32) (i32.const 0))
    (func $grow (param $pages i32)
      (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1)) (then unreachable)))
    (func (export "run")
      (local $block i64)
      (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
      ${body}
      (local.set $block (call $alloc (i64.const 2)))
      (call $store_u8 (local.get $block) (global.get $calls))
      (call $store_u8 (i64.add (local.get $block) (i64.const 1)) (i32.shr_u (global.get $calls) (i32.const 8)))
      (call $output_set (local.get $block) (i64.const 2)))
    ${more})`)
}

const INITIALIZED_BY_HOST = '(func (export "_initialize") (call $begin))'

function openCounter (wasm, { begin = () => {}, ...options } = {}) {
  return open(wasm, { functions: { 'extism:host/user': { begin } }, ...options })
}

const count = async (plugin) => (await plugin.call('run')).getUint16(0, true)

async function counts (plugin, calls) {
  const all = []
  for (let call = 0; call < calls; call++) all.push(await count(plugin))
  return all
}

/** The figures of `stats().replaced` that are not 0. */
const replaced = (plugin) => Object.fromEntries(Object.entries(plugin.stats().replaced).filter(([, number]) => number > 0))

const oneTo = (last) => Array.from({ length: last }, (_, index) => index + 1)

describe('by memory', () => {
  test('a guest that leaks a page in each call serves forever', async () => {
    const plugin = await openCounter(await counter('(call $grow (i32.const 1))'), { memory: { maxPages: 64 } })
    await counts(plugin, 500)
    const { calls } = plugin.stats()
    expect(calls).toEqual({ succeeded: 500, failed: {} })
    const { memory, ...others } = replaced(plugin)
    expect(memory).toBeGreaterThan(500 / 64)
    expect(memory).toBeLessThan(500 / 32)
    expect(others).toEqual({})
  })

  test('so does one with the default limit, and several instances', async () => {
    const plugin = await openCounter(await counter('(call $grow (i32.const 64))'), { instances: 2, eager: true })
    await Promise.all(Array.from({ length: 500 }, () => count(plugin)))
    expect(plugin.stats().calls).toEqual({ succeeded: 500, failed: {} })
    expect(replaced(plugin)).toEqual({ memory: expect.any(Number) })
  })

  test('so does one whose allocator doubles its memory when it is full', async () => {
    const isFull = '(i32.gt_u (global.get $calls) (memory.size))'
    const plugin = await openCounter(await counter(`(if ${isFull} (then (call $grow (memory.size))))`), { memory: { maxPages: 100 } })
    await counts(plugin, 500)
    expect(plugin.stats().calls).toEqual({ succeeded: 500, failed: {} })
  })

  test('one that takes nearly all of it at first, and no more after that, keeps its instance', async () => {
    const inFirstCall = '(if (i32.eq (global.get $calls) (i32.const 1)) (then (call $grow (i32.const 60))))'
    const inInitialization = '(func (export "_initialize") (call $grow (i32.const 60)))'
    for (const wasm of [await counter(inFirstCall), await counter('', inInitialization)]) {
      const plugin = await openCounter(wasm, { memory: { maxPages: 64 } })
      expect(await counts(plugin, 100)).toEqual(oneTo(100))
      expect(replaced(plugin)).toEqual({})
    }
  })

  test('one that uses most of its memory again and again keeps its instance', async () => {
    const plugin = await open(many, { memory: { maxPages: 64 } })
    const input = Buffer.alloc(2 << 20, 'extism')
    for (let call = 0; call < 20; call++) await plugin.call('echo', input)
    expect(replaced(plugin)).toEqual({})
  })

  test('a guest that grows beyond its limit in one call still fails', async () => {
    const plugin = await openCounter(await counter('(call $grow (i32.const 65))'), { memory: { maxPages: 64 } })
    await expect(plugin.call('run')).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
  })
})

describe('by the number of calls', () => {
  test.each(['wasmtime', 'extism'])('each instance serves maxCalls (runtime %s)', async (runtime) => {
    const plugin = await open(many, { runtime, maxCalls: 3 })
    const all = []
    for (let call = 0; call < 8; call++) all.push((await plugin.call('count')).getUint8(0))
    expect(all).toEqual([1, 2, 3, 1, 2, 3, 1, 2])
    expect(replaced(plugin)).toEqual({ calls: 2 })
  })

  test('calls that fail count too, and no call is lost', async () => {
    const plugin = await open(many, { maxCalls: 2, instances: 2, eager: true })
    const inputs = Array.from({ length: 300 }, (_, index) => `input ${index}`)
    const outcomes = await Promise.all(inputs.map((input, index) => index % 2 === 0
      ? plugin.call('echo', input).then((output) => output.text())
      : plugin.call('fail', input).catch(({ message }) => message)))
    expect(outcomes).toEqual(inputs.map((input, index) => expect.stringContaining(input)))
    expect(plugin.stats().calls).toEqual({ succeeded: 150, failed: { PLUGIN_ERROR: 150 } })
    // The last of each instance may be under way.
    expect(replaced(plugin).calls).toBeGreaterThanOrEqual(148)
  })

  test('results of one instance come in the order of their calls', async () => {
    const plugin = await open(many, { maxCalls: 1 })
    const order = []
    await Promise.all(oneTo(50).map((call) => plugin.call('echo', 'input').then(() => order.push(call))))
    expect(order).toEqual(oneTo(50))
  })

  test('a result does not wait for the next instance, and the next call waits for nothing else', async () => {
    let beginnings = 0
    let release
    const isReleased = new Promise((resolve) => { release = resolve })
    const begin = () => ++beginnings === 1 ? undefined : isReleased
    const plugin = await openCounter(await counter('', INITIALIZED_BY_HOST), { begin, maxCalls: 1 })
    expect(await count(plugin)).toBe(1)
    const next = count(plugin)
    release()
    expect(await next).toBe(1)
    expect(beginnings).toBeGreaterThanOrEqual(2)
  })
})

describe('by age', () => {
  test.each(['wasmtime', 'extism'])('an instance older than maxAgeMs serves no second call (runtime %s)', async (runtime) => {
    const plugin = await open(many, { runtime, maxAgeMs: 20 })
    const all = []
    while (plugin.stats().replaced.age < 3) all.push((await plugin.call('count')).getUint8(0))
    const restarts = all.filter((number) => number === 1).length
    expect(restarts).toBeGreaterThanOrEqual(3)
    all.forEach((number, index) => expect([1, ((all[index - 1] ?? 0) + 1) % 256]).toContain(number))
    expect(Object.keys(replaced(plugin))).toEqual(['age'])
  })

  test('an instance that idled for longer is replaced after its next call', async () => {
    const plugin = await open(many, { maxAgeMs: 1 })
    await new Promise((resolve) => setTimeout(resolve, 10))
    for (let call = 0; call < 3; call++) {
      expect((await plugin.call('count')).getUint8(0)).toBe(1)
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    expect(replaced(plugin)).toEqual({ age: 3 })
  })
})

describe('if the next instance cannot be initialized', () => {
  test('because its initialization fails, the old one serves on, until one can', async () => {
    let isBroken = false
    const begin = () => { if (isBroken) throw new Error('not today') }
    const plugin = await openCounter(await counter('', INITIALIZED_BY_HOST), { begin, maxCalls: 2 })
    expect(await count(plugin)).toBe(1)
    isBroken = true
    expect(await counts(plugin, 6)).toEqual([2, 3, 4, 5, 6, 7])
    expect(replaced(plugin)).toEqual({})
    isBroken = false
    expect(await counts(plugin, 3)).toEqual([8, 1, 2])
    expect(plugin.stats().calls.failed).toEqual({})
  })

  test('because its initialization takes too long, the old one serves on', async () => {
    let isSlow = false
    const begin = () => isSlow ? new Promise(() => {}) : undefined
    const plugin = await openCounter(await counter('', INITIALIZED_BY_HOST), { begin, maxCalls: 2, timeoutMs: 300 })
    expect(await count(plugin)).toBe(1)
    isSlow = true
    expect(await counts(plugin, 4)).toEqual([2, 3, 4, 5])
    isSlow = false
    expect(await counts(plugin, 2)).toEqual([6, 1])
    expect(plugin.stats()).toMatchObject({ calls: { succeeded: 7, failed: {} }, abandonedThreads: 0 })
  })
})

test('the logger gets the reason if an instance could not be replaced', async () => {
  let instances = 0
  const warn = jest.fn()
  const begin = () => { if (++instances > 1) throw new Error('not again') }
  const plugin = await openCounter(await counter('', INITIALIZED_BY_HOST), { maxCalls: 2, begin, logger: { ...console, warn }, logLevel: 'warn' })
  expect(await counts(plugin, 3)).toEqual([1, 2, 3])
  await until(() => warn.mock.calls.length > 0)
  expect(warn).toHaveBeenCalledWith(expect.stringMatching(/could not be replaced by a new one and continues to serve: .*HOST_FUNCTION_ERROR/))
})

test('a plugin that is closed while its next instance begins closes', async () => {
  let release
  let beginnings = 0
  const isReleased = new Promise((resolve) => { release = resolve })
  const begin = () => ++beginnings === 1 ? undefined : isReleased
  const plugin = await openCounter(await counter('', INITIALIZED_BY_HOST), { begin, maxCalls: 1 })
  expect(await count(plugin)).toBe(1)
  const isClosed = plugin.close()
  release()
  await isClosed
  await expect(plugin.call('run')).rejects.toMatchObject({ code: 'CLOSED' })
})

test('metrics say how many instances were replaced, and why', async () => {
  const app = Fastify()
  app.register(extismHost, { plugins: { many: { source: many, maxCalls: 2, maxAgeMs: 1_000_000 } }, metrics: true })
  await app.ready()
  for (let call = 0; call < 5; call++) await app.extism.plugin('many').call('silent')
  const lines = (await app.inject('/metrics')).payload.split('\n')
  expect(lines).toContain('extism_plugin_instances_replaced_total{plugin="many",reason="calls"} 2')
  expect(lines).toContain('extism_plugin_instances_replaced_total{plugin="many",reason="age"} 0')
  expect(lines).toContain('extism_plugin_instances_replaced_total{plugin="many",reason="memory"} 0')
  await app.close()
})

test.each([{ maxCalls: 0 }, { maxCalls: 1.5 }, { maxCalls: '2' }, { maxAgeMs: 0 }, { maxAgeMs: -1 }, { maxAgeMs: NaN }])('%j is refused', async (options) => {
  await expect(open(many, options)).rejects.toMatchObject({ name: 'TypeError', code: 'INVALID_ARGUMENT' })
})
