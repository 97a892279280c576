'use strict'

// What a guest does to itself must stay with it. What it tries on the host is in tests/attacks.rs and
// tests/kernel_fuzz.rs, so here is one such guest, on the whole addon.

const { createPlugin } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { runNode } = require('./support/processes.js')

let many

beforeAll(async () => { many = await guest('many') })

test('a guest that forges the header of a block gets a trap, and the next call works', async () => {
  const forger = await assemble(`(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/user" "hostMemoryGet" (func $get (param i64) (result i64)))
    (func (export "forge")
      (local $block i64)
      (local.set $block (call $alloc (i64.const 8)))
      (call $store (i64.sub (local.get $block) (i64.const 1)) (i32.const 0x7F))
      (call $store (i64.sub (local.get $block) (i64.const 2)) (i32.const 0xFF))
      (drop (call $get (local.get $block))))
    (func (export "behave") (drop (call $get (call $alloc (i64.const 8))))))`)
  const { code, signal, output } = await runNode(['-e', `
    const { createPlugin } = require('.')
    createPlugin(Buffer.from('${forger.toString('base64')}', 'base64')).then(async (plugin) => {
      await plugin.call('forge').catch((error) => console.log(error.code))
      console.log(await plugin.call('behave'))
    })`])
  expect({ code, signal, output }).toEqual({ code: 0, signal: null, output: 'TRAP\nnull\n' })
})

test('a trap names the functions that were running, the innermost first', async () => {
  const plugin = await createPlugin(await assemble(`(module
    (func $inner unreachable)
    (func $middle (call $inner))
    (func (export "run") (call $middle))
    (func (export "fail") (result i32) (i32.const 3)))`))
  const error = await plugin.call('run').catch((error) => error)
  expect(error).toMatchObject({ code: 'TRAP', function: 'run' })
  expect(error.wasmBacktrace.slice(0, 2)).toEqual(['inner', 'middle'])
  expect(error.message).toMatch(/unreachable.*in inner, called by middle/)
  const failed = await plugin.call('fail').catch((error) => error)
  expect(failed).toMatchObject({ code: 'PLUGIN_ERROR', function: 'fail' })
  expect(failed).not.toHaveProperty('wasmBacktrace')
  await plugin.close()
})

test('an export without parameters and with any one number as its result can be called; only an i32 is a return code', async () => {
  const plugin = await createPlugin(await assemble(`(module
    (func (export "i32") (result i32) (i32.const 7))
    (func (export "i64") (result i64) (i64.const 7))
    (func (export "f32") (result f32) (f32.const 7))
    (func (export "f64") (result f64) (f64.const 7)))`))
  await expect(plugin.call('i32')).rejects.toMatchObject({ code: 'PLUGIN_ERROR' })
  for (const name of ['i64', 'f32', 'f64']) expect(await plugin.call(name)).toBeNull()
  await plugin.close()
})

test('a guest cannot import from names that are this library\'s own', async () => {
  const thief = await assemble('(module (import "extism-host:host" "next" (func (result i32 i64))))')
  await expect(createPlugin(thief)).rejects.toMatchObject({ code: 'RESERVED_NAME' })
})

test('modules that call one another in a circle work, and one that never ends is a trap', async () => {
  const even = await assemble(`(module
    (import "odd" "is_odd" (func $is_odd (param i32) (result i32)))
    (func $is_even (export "is_even") (param $n i32) (result i32)
      (if (result i32) (i32.eqz (local.get $n))
        (then (i32.const 1))
        (else (call $is_odd (i32.sub (local.get $n) (i32.const 1))))))
    (func (export "ten_is_odd") (result i32) (call $is_odd (i32.const 10)))
    (func (export "for_ever") (drop (call $is_odd (i32.const -1)))))`)
  const odd = await assemble(`(module
    (import "main" "is_even" (func $is_even (param i32) (result i32)))
    (func (export "is_odd") (param $n i32) (result i32)
      (if (result i32) (i32.eqz (local.get $n))
        (then (i32.const 0))
        (else (call $is_even (i32.sub (local.get $n) (i32.const 1)))))))`)
  const plugin = await createPlugin({ wasm: [{ data: odd, name: 'odd' }, { data: even }] })
  expect(await plugin.call('ten_is_odd')).toBeNull()
  await expect(plugin.call('for_ever')).rejects.toMatchObject({ code: 'TRAP' })
  await plugin.close()
})

test('a function that modules only pass on to one another is refused, by name', async () => {
  const link = (from) => assemble(`(module (import "${from}" "f" (func $f)) (export "f" (func $f)))`)
  await expect(createPlugin({
    wasm: [
      { data: await link('second'), name: 'first' },
      { data: await link('first'), name: 'second' },
      { data: await link('first') }
    ]
  })).rejects.toMatchObject({
    code: 'CIRCULAR_LINKING',
    message: expect.stringMatching(/first.*second|second.*first/)
  })
})

describe('a plugin whose initialization', () => {
  const initializing = (body) => assemble(`(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (import "extism:host/user" "hostMemoryGet" (func $get (param i64) (result i64)))
    (global $ran (mut i32) (i32.const 0))
    (func $note (drop (call $get (call $alloc (i64.const 1))))
      (global.set $ran (i32.add (global.get $ran) (i32.const 1))))
    ${body}
    (func (export "ran") (local $block i64)
      (local.set $block (call $alloc (i64.const 1)))
      (call $store (local.get $block) (global.get $ran))
      (call $output_set (local.get $block) (i64.const 1))))`)

  test('calls a host function, from _initialize or from the start function, runs it once', async () => {
    for (const body of ['(start $note)', '(export "_initialize" (func $note))']) {
      const plugin = await createPlugin(await initializing(body))
      for (let call = 0; call < 2; call++) expect((await plugin.call('ran')).getUint8(0)).toBe(1)
      await plugin.close()
    }
  })

  test('never ends is refused when its time is over', async () => {
    const loop = '(func $loop (loop $again (br $again)))'
    for (const body of [`${loop} (start $loop)`, `${loop} (export "_initialize" (func $loop))`]) {
      await expect(createPlugin(await initializing(body), { timeoutMs: 100 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    }
  })

  test('traps is refused', async () => {
    await expect(createPlugin(await initializing('(func $trap (unreachable)) (start $trap)')))
      .rejects.toMatchObject({ code: 'TRAP' })
  })
})

test('an initial memory or table over the limit is refused', async () => {
  const large = await assemble('(module (memory 5000))')
  await expect(createPlugin(large)).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
  const wide = await assemble('(module (table 100000000 funcref))')
  await expect(createPlugin(wide)).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
})

test('an output over the limit is rejected, and the plugin keeps working', async () => {
  const plugin = await createPlugin(many, { maxOutputBytes: 10 })
  await expect(plugin.call('echo', 'eleven char')).rejects.toMatchObject({ code: 'OUTPUT_TOO_LARGE' })
  expect((await plugin.call('echo', 'ten chars!')).text()).toBe('ten chars!')
  await plugin.close()
})

test('while one instance breaks again and again, the other\'s calls end well', async () => {
  const plugin = await createPlugin(many, { instances: 2, timeoutMs: 1_000, memory: { maxPages: 256 } })
  const breaking = ['trap', 'recurse', 'grow_for_ever', 'divide_by_zero']
  const results = await Promise.allSettled(Array.from({ length: 400 }, (_, index) =>
    index % 2 === 0 ? plugin.call('echo', `call ${index}`) : plugin.call(breaking[(index >> 1) % 4])))
  results.forEach((result, index) => {
    if (index % 2 === 0) expect(result.value.text()).toBe(`call ${index}`)
    else expect(['TRAP', 'OUT_OF_MEMORY']).toContain(result.reason.code)
  })
  await plugin.close()
})

test('ten thousand mixed calls do not make the process grow', async () => {
  const { code, output, errors } = await runNode(['--expose-gc', '-e', `
    const { createPlugin } = require('.')
    const wasm = Buffer.from('${many.toString('base64')}', 'base64')
    createPlugin(wasm, { instances: 2, memory: { maxPages: 256 } }).then(async (plugin) => {
      const names = ['echo', 'trap', 'count', 'fail', 'echo', 'grow_for_ever', 'echo', 'read_store', 'return_three', 'echo']
      let calls = 0
      async function run (upTo) {
        while (calls < upTo) {
          await Promise.allSettled(Array.from({ length: 20 }, () => plugin.call(names[calls++ % 10], 'input')))
        }
        gc()
        return process.memoryUsage().rss
      }
      const before = await run(1_000)
      const after = await run(10_000)
      console.log((after - before) / 1048576 < 32 ? 'even' : \`from \${before} to \${after}\`)
    })`])
  expect({ code, output, errors }).toEqual({ code: 0, output: 'even\n', errors: '' })
}, 120_000)
