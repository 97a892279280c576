'use strict'

const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { release, tmpdir } = require('node:os')
const { join } = require('node:path')
const { createPlugin } = require('..')
const { assemble, guest } = require('./support/guest.js')

// WASI's EBADF.
const BAD_DESCRIPTOR = 8

let wasm
let directory
const plugins = []

beforeEach(async () => { wasm = await guest('many') })
afterEach(async () => {
  await Promise.all(plugins.splice(0).map((plugin) => plugin.close()))
  if (directory !== undefined) rmSync(directory, { recursive: true })
  directory = undefined
})

async function start (options) {
  const plugin = await createPlugin(wasm, options)
  plugins.push(plugin)
  return plugin
}

const count = async (plugin) => (await plugin.call('count')).getUint8(0)

describe('isolation', () => {
  test('by instance, the default, keeps the state from call to call', async () => {
    const plugin = await start({ isolation: 'instance' })
    expect([await count(plugin), await count(plugin), await count(plugin)]).toEqual([1, 2, 3])
  })

  test('by call leaves nothing of one call for the next', async () => {
    const plugin = await start({ isolation: 'call', instances: 2 })
    const counts = await Promise.all(Array.from({ length: 50 }, () => count(plugin)))
    expect(counts).toEqual(counts.map(() => 1))
    await expect(plugin.call('fail', 'why')).rejects.toMatchObject({ code: 'PLUGIN_ERROR' })
    expect(await count(plugin)).toBe(1)
    expect(plugin.stats().replaced.isolation).toBeGreaterThanOrEqual(50)
  })

  // `look` tells what it finds, and leaves something everywhere. What is in `more` decides how the next instance
  // is made ready.
  const leaver = (more, leave) => assemble(`(module
    (import "wasi_snapshot_preview1" "path_open"
      (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_tell" (func $tell (param i32 i32) (result i32)))
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "load_u8" (func $load (param i64) (result i32)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (memory (export "memory") 2)
    (data (i32.const 0) "file")
    (global $global (mut i32) (i32.const 1))
    ${more}
    (func (export "look") (local $block i64)
      (local.set $block (call $alloc (i64.const 16)))
      (call $store (i64.add (local.get $block) (i64.const 1)) (call $load (i64.add (local.get $block) (i64.const 9))))
      (call $store (i64.add (local.get $block) (i64.const 9)) (i32.const 55))
      (call $store (local.get $block) (i32.wrap_i64 (local.get $block)))
      (call $store (i64.add (local.get $block) (i64.const 2)) (i32.load8_u (i32.const 70000)))
      (i32.store8 (i32.const 70000) (i32.const 66))
      (call $store (i64.add (local.get $block) (i64.const 3)) (global.get $global))
      (global.set $global (i32.const 77))
      (call $store (i64.add (local.get $block) (i64.const 4)) (memory.size))
      ;; Is a file open already? Then one is opened.
      (call $store (i64.add (local.get $block) (i64.const 5)) (call $tell (i32.const 4) (i32.const 128)))
      (call $store (i64.add (local.get $block) (i64.const 6))
        (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 64)))
      (call $store (i64.add (local.get $block) (i64.const 7)) (i32.load8_u (i32.const 64)))
      ${leave}
      (call $output (local.get $block) (i64.const 9))))`)

  test.each([
    ['if it is put back in place', '', '', true],
    ['if it is made anew, as memory has grown', '', '(drop (memory.grow (i32.const 1)))', false],
    ['if it is made anew, as it has a table that changes', '(table $table 1 funcref) (elem declare func $marker) (func $marker)', `
      (call $store (i64.add (local.get $block) (i64.const 8)) (i32.eqz (ref.is_null (table.get $table (i32.const 0)))))
      (table.set $table (i32.const 0) (ref.func $marker))`, false]
  ])('by call leaves no memory, global, table, block or open file, %s', async (_, more, leave, isKept) => {
    directory = mkdtempSync(join(tmpdir(), 'extism-host-isolation-'))
    writeFileSync(join(directory, 'file'), 'content')
    const options = { useWasi: true, allowedPaths: [{ host: directory, guest: '/' }] }
    wasm = await leaver(more, leave)
    const look = async (plugin) => [...(await plugin.call('look')).bytes()]
    const isolated = await start({ ...options, isolation: 'call' })
    const fresh = await look(isolated)
    expect(fresh.slice(1, 8)).toEqual([0, 0, 1, 2, BAD_DESCRIPTOR, 0, 4])
    for (let i = 0; i < 20; i++) expect(await look(isolated)).toEqual(fresh)
    // Before Linux 6.7 all are made anew.
    if (!isKept) expect(isolated.stats().made).toBeGreaterThan(20)
    else if (process.platform === 'linux' && isolated.stats().made > 20) expect(release()).toMatch(/^([1-5]|6\.[0-6])\./)
    // What it looks at is there: the next call of an instance that is kept finds it.
    const kept = await start(options)
    expect(await look(kept)).toEqual(fresh)
    expect(await look(kept)).not.toEqual(fresh)
  })

  test('of another name is refused', async () => {
    await expect(start({ isolation: 'process' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })
})

describe('fuel', () => {
  test('ends a call that uses it up, and the next one has as much again', async () => {
    const plugin = await start({ fuel: 1_000_000 })
    for (let round = 0; round < 3; round++) {
      await expect(plugin.call('loop_for_ever')).rejects.toMatchObject({
        code: 'FUEL_EXHAUSTED',
        message: expect.stringContaining('fuel')
      })
      for (let i = 0; i < 50; i++) expect((await plugin.call('echo', `call ${i}`)).text()).toBe(`call ${i}`)
    }
    const { calls, replaced } = plugin.stats()
    expect(calls).toEqual({ succeeded: 150, failed: { FUEL_EXHAUSTED: 3 } })
    expect(replaced.fuelExhausted).toBe(3)
  })

  test('is per call: unused fuel is not carried over', async () => {
    const plugin = await start({ fuel: 200_000 })
    // Together they use far more than one may.
    for (let i = 0; i < 500; i++) await plugin.call('echo', 'x'.repeat(1_000))
    expect(await count(plugin)).toBe(1)
    expect(await count(plugin)).toBe(2)
  })

  test('is used up at the same place each time', async () => {
    const plugin = await start({ fuel: 1_000_000 })
    const outcomes = await Promise.all(Array.from({ length: 20 }, () => plugin.call('loop_for_ever').catch(({ code }) => code)))
    expect(new Set(outcomes)).toEqual(new Set(['FUEL_EXHAUSTED']))
  })

  test('that is too little is an error of the call; of createPlugin if the initialization needs more', async () => {
    const plugin = await start({ fuel: 1 })
    await expect(plugin.call('echo', 'input')).rejects.toMatchObject({ code: 'FUEL_EXHAUSTED' })
    const busy = await assemble(`(module (func (export "_initialize") (local $i i32)
      (loop $again
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const 1000))))))`)
    await expect(createPlugin(busy, { fuel: 50 })).rejects.toMatchObject({ code: 'FUEL_EXHAUSTED' })
  })

  test('goes with time limits and aborts', async () => {
    const plugin = await start({ fuel: Number.MAX_SAFE_INTEGER, timeoutMs: 50 })
    await expect(plugin.call('loop_for_ever')).rejects.toMatchObject({ code: 'TIMEOUT' })
    await expect(plugin.call('loop_for_ever', '', null, { signal: AbortSignal.timeout(20) })).rejects.toThrow()
    expect((await plugin.call('echo', 'alive')).text()).toBe('alive')
  })

  for (const fuel of [0, -1, 1.5, '1000', Infinity]) {
    test(`of ${typeof fuel} ${fuel} is refused`, async () => {
      await expect(start({ fuel })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    })
  }
})
