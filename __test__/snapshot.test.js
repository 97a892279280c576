'use strict'

const { mkdtempSync, readdirSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: delay } = require('node:timers/promises')
const { createPlugin, precompile } = require('..')
const { assemble } = require('./support/guest.js')

// `state` returns a byte of memory, a global, the pages of memory, and whether an element of the table is there.
const guest = (initialize, more = '') => assemble(`(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "config_get" (func $config (param i64) (result i64)))
  (memory (export "memory") 1)
  (global $global (mut i32) (i32.const 0))
  (table $table 2 funcref)
  (elem declare func $marker)
  (func $marker)
  (func (export "_initialize") ${initialize})
  (func (export "state") (local $block i64)
    (local.set $block (call $alloc (i64.const 4)))
    (call $store (local.get $block) (i32.load8_u (i32.const 4096)))
    (call $store (i64.add (local.get $block) (i64.const 1)) (global.get $global))
    (call $store (i64.add (local.get $block) (i64.const 2)) (memory.size))
    (call $store (i64.add (local.get $block) (i64.const 3)) (i32.eqz (ref.is_null (table.get $table (i32.const 1)))))
    (call $output (local.get $block) (i64.const 4)))
  (func (export "change")
    (i32.store8 (i32.const 4096) (i32.const 99))
    (global.set $global (i32.const 99)))
  (func (export "grow") (result i32)
    (i32.eq (memory.grow (i32.const 3)) (i32.const -1)))
  ${more})`)

const INITIALIZE = `
  (i32.store8 (i32.const 4096) (i32.add (i32.load8_u (i32.const 4096)) (i32.const 7)))
  (global.set $global (i32.const 8))
  (drop (memory.grow (i32.const 2)))`

const plugins = []
let directory
beforeEach(() => { directory = mkdtempSync(join(tmpdir(), 'extism-host-snapshot-')) })
afterEach(async () => {
  await Promise.all(plugins.splice(0).map((plugin) => plugin.close()))
  rmSync(directory, { recursive: true })
})

async function open (wasm, options) {
  const plugin = await createPlugin(wasm, { snapshot: true, compileCache: { directory }, ...options })
  plugins.push(plugin)
  return plugin
}

async function start (wasm, options) {
  await precompile(wasm, { snapshot: true, compileCache: { directory }, ...options })
  return open(wasm, options)
}

async function isTaken (plugin) {
  while (plugin.stats().snapshot === 'pending') await delay(5)
  return plugin.stats().snapshot
}

function listener () {
  const warn = jest.fn()
  return { warn, options: { logger: { trace () {}, debug () {}, info () {}, warn, error () {} }, logLevel: 'warn' } }
}

const state = async (plugin) => [...(await plugin.call('state')).bytes()]

describe('with a snapshot', () => {
  let wasm
  beforeAll(async () => { wasm = await guest(INITIALIZE) })

  test.each(['page', 'epoch'])('instances start from the state after the initialization (%s)', async (interruption) => {
    const plugin = await start(wasm, { interruption })
    expect(plugin.stats().snapshot).toBe('taken')
    expect(await state(plugin)).toEqual([7, 8, 3, 0])
  })

  test('every call of an isolated plugin does', async () => {
    const plugin = await start(wasm, { isolation: 'call' })
    for (let i = 0; i < 20; i++) {
      expect(await state(plugin)).toEqual([7, 8, 3, 0])
      await plugin.call('change')
    }
  })

  test('pages that the initialization has taken count for the limit', async () => {
    const limited = await start(wasm, { memory: { maxPages: 4 } })
    await expect(limited.call('grow')).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
    const enough = await start(wasm, { memory: { maxPages: 6 } })
    await expect(enough.call('grow')).resolves.toBeDefined()
  })

  test('endless calls still end', async () => {
    const endless = await guest(INITIALIZE, '(func (export "spin") (loop $next (br $next)))')
    const plugin = await start(endless, { timeoutMs: 50 })
    expect(plugin.stats().snapshot).toBe('taken')
    await expect(plugin.call('spin')).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect(await state(plugin)).toEqual([7, 8, 3, 0])
  })

  test('a segment that code copies from is kept', async () => {
    const copying = await guest(INITIALIZE, `
      (data $passive "\\05")
      (func (export "copy") (memory.init $passive (i32.const 4096) (i32.const 0) (i32.const 1)))`)
    const plugin = await start(copying)
    expect(plugin.stats().snapshot).toBe('taken')
    await plugin.call('copy')
    expect((await state(plugin))[0]).toBe(5)
  })
})

describe('without one, the plugin starts normally, and the logger gets the reason', () => {
  test.each([
    ['changes a table', `${INITIALIZE} (table.set $table (i32.const 1) (ref.func $marker))`, 'table.set', 1],
    ['calls a host function', `${INITIALIZE} (drop (call $config (i64.const 0)))`, 'config_get', 0]
  ])('because it %s', async (_, initialize, reason, element) => {
    const { warn, options } = listener()
    const plugin = await open(await guest(initialize), options)
    expect(await isTaken(plugin)).toBe('unsupported')
    expect(await state(plugin)).toEqual([7, 8, 3, element])
    expect(warn).toHaveBeenCalledWith(expect.stringContaining(reason))
  })

  test('also when the compiled plugin comes from the cache', async () => {
    const source = await guest(`${INITIALIZE} (drop (call $config (i64.const 0)))`)
    await precompile(source, { snapshot: true, compileCache: { directory } })
    const { warn, options } = listener()
    await open(source, options)
    expect(warn).toHaveBeenCalledWith(expect.stringContaining('config_get'))
  })

  test('because it takes too long, which is an error then', async () => {
    const endless = await guest('(loop $next (br $next))')
    await expect(open(endless, { timeoutMs: 50 })).rejects.toMatchObject({ code: 'TIMEOUT' })
  })

  test('and a snapshot that may differ next time is not cached', async () => {
    const endless = await guest('(loop $next (br $next))')
    const compiling = precompile(endless, { snapshot: true, timeoutMs: 50, compileCache: { directory } })
    await expect(compiling).rejects.toMatchObject({ code: 'CACHE_UNAVAILABLE', message: expect.stringContaining('too long') })
    expect(readdirSync(join(directory, 'modules'))).toEqual([])
  })
})

describe('without a snapshot in the cache', () => {
  // Without a snapshot, each instance reads another number.
  const random = () => assemble(`(module
    (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (memory (export "memory") 1)
    (func (export "_initialize") (drop (call $random (i32.const 64) (i32.const 8))))
    (func (export "number") (local $block i64)
      (local.set $block (call $alloc (i64.const 8)))
      (call $store (local.get $block) (i64.load (i32.const 64)))
      (call $output (local.get $block) (i64.const 8))))`)
  const number = async (plugin) => (await plugin.call('number')).bytes().toString('hex')

  test('instances without it serve calls until it has been taken, then all start from it', async () => {
    const { warn, options } = listener()
    const plugin = await open(await random(), { useWasi: true, isolation: 'call', ...options })
    const first = await Promise.all(Array.from({ length: 8 }, () => number(plugin)))
    expect(first).toHaveLength(8)
    expect(await isTaken(plugin)).toBe('taken')
    // The instances that were ready by then.
    for (let i = 0; i < 8; i++) await number(plugin)
    const numbers = new Set()
    for (let i = 0; i < 20; i++) numbers.add(await number(plugin))
    expect(numbers.size).toBe(1)
    expect(warn).toHaveBeenCalledWith(expect.stringContaining('random numbers'))
  })

  test('the next start finds it there', async () => {
    const wasm = await random()
    const options = { useWasi: true, isolation: 'call' }
    const first = await open(wasm, options)
    await isTaken(first)
    const next = await open(wasm, options)
    expect(next.stats().snapshot).toBe('taken')
    expect(await number(next)).toBe(await number(next))
  })

  test('a plugin without a cache has one as well', async () => {
    const plugin = await open(await random(), { useWasi: true, compileCache: false })
    expect(await isTaken(plugin)).toBe('taken')
  })

  test('a plugin may be closed before it has been taken', async () => {
    const plugin = await createPlugin(await random(), { useWasi: true, snapshot: true, compileCache: false })
    await plugin.close()
  })
})

test('a plugin that did not ask for one has none', async () => {
  const plugin = await open(await guest(INITIALIZE), { snapshot: false })
  expect(plugin.stats().snapshot).toBe('none')
  expect(await state(plugin)).toEqual([7, 8, 3, 0])
})
