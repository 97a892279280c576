'use strict'

const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { createPlugin } = require('..')
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
afterEach(() => Promise.all(plugins.splice(0).map((plugin) => plugin.close())))

async function start (wasm, options) {
  const plugin = await createPlugin(wasm, { snapshot: true, compileCache: false, ...options })
  plugins.push(plugin)
  return plugin
}

const state = async (plugin) => [...(await plugin.call('state')).bytes()]

describe('with a snapshot', () => {
  let wasm
  beforeAll(async () => { wasm = await guest(INITIALIZE) })

  test.each(['page', 'epoch'])('instances start from what the initialization has left (%s)', async (interruption) => {
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

describe('without one, the plugin starts normally, and the logger is told why', () => {
  test.each([
    ['changes a table', `${INITIALIZE} (table.set $table (i32.const 1) (ref.func $marker))`, 'table.set', 1],
    ['calls a host function', `${INITIALIZE} (drop (call $config (i64.const 0)))`, 'config_get', 0]
  ])('because it %s', async (_, initialize, reason, element) => {
    const warn = jest.fn()
    const logger = { trace () {}, debug () {}, info () {}, warn, error () {} }
    const plugin = await start(await guest(initialize), { logger, logLevel: 'warn' })
    expect(plugin.stats().snapshot).toBe('unsupported')
    expect(await state(plugin)).toEqual([7, 8, 3, element])
    expect(warn).toHaveBeenCalledWith(expect.stringContaining(reason))
  })

  test('also when the compiled plugin comes from the cache', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'extism-host-snapshot-'))
    const source = await guest(`${INITIALIZE} (drop (call $config (i64.const 0)))`)
    for (let i = 0; i < 2; i++) {
      const warn = jest.fn()
      const logger = { trace () {}, debug () {}, info () {}, warn, error () {} }
      await start(source, { logger, logLevel: 'warn', compileCache: { directory } })
      expect(warn).toHaveBeenCalledWith(expect.stringContaining('config_get'))
    }
    rmSync(directory, { recursive: true })
  })

  test('because it takes too long, which is an error then', async () => {
    const endless = await guest('(loop $next (br $next))')
    await expect(start(endless, { timeoutMs: 50 })).rejects.toMatchObject({ code: 'TIMEOUT' })
  })
})

test('a plugin that did not ask for one has none', async () => {
  const plugin = await start(await guest(INITIALIZE), { snapshot: false })
  expect(plugin.stats().snapshot).toBe('none')
  expect(await state(plugin)).toEqual([7, 8, 3, 0])
})
