'use strict'

// Plugins as the toolchains build them. Those in Go and Rust are in plugins, C's is guests/greeting.c; they are
// committed as plugins/build.sh builds them. AssemblyScript's are compiled here.
// Those of toolchains that cannot be had from a package registry are WebAssembly text of the same
// shape: the same imports and exports, and the same order of initialization.

const { execFileSync } = require('node:child_process')
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { createPlugin, MemoryStore } = require('..')
const { assemble } = require('./support/guest.js')
const { ROOT } = require('./support/processes.js')

let plugin

afterEach(() => plugin.close())

async function load (wasm, store = new MemoryStore([['hello', '👋']])) {
  plugin = await createPlugin(wasm, { useWasi: true, store })
  return async (name, input) => (await plugin.call(name, input)).text()
}

test('mainline Go: a reactor with _initialize', async () => {
  const call = await load(join(ROOT, 'plugins/say-hello/say-hello.wasm'))
  expect(await call('say_hello', 'Jane Doe')).toBe('👋 Hello Jane Doe\nkey: hello, value: 👋\nkey: message, value: ')
})

/** Compiles a source in AssemblyScript, whose `abort_` takes the place of an import, and passes the file on. */
async function compiled (source, use) {
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  try {
    const wasm = join(directory, 'plugin.wasm')
    execFileSync(process.execPath, [
      'node_modules/assemblyscript/bin/asc.js', source,
      '--use', `abort=${source.replace('.ts', '')}/abort_`, '-o', wasm
    ], { cwd: ROOT, stdio: 'pipe' })
    return await use(wasm)
  } finally {
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
}

test('AssemblyScript: a start function, and a PDK that copies eight bytes at a time', async () => {
  const call = await compiled('__test__/guests/greeting.ts', load)
  expect(await call('greet', 'hello')).toBe('👋, after nothing')
  expect(await call('greet', 'hello')).toBe('👋, after hello')
})

describe('a plugin that counts visits in its store', () => {
  const writing = () => ({ store: new MemoryStore(), access: 'write' })

  async function check (call) {
    expect(await call('visit', 'Jane')).toBe('visit 1 of Jane, after nobody')
    expect(await call('visit', 'Joé')).toBe('visit 1 of Joé, after Jane')
    expect(await call('visit', 'Jane')).toBe('visit 2 of Jane, after Joé')
  }

  test.each(['go', 'rust'])('built from plugins/visits-%s', async (language) => {
    const wasm = join(ROOT, `plugins/visits-${language}/visits.wasm`)
    await check(await load(wasm, writing()))
    await plugin.close()
    const call = await load(wasm)
    await expect(call('visit', 'Jane')).rejects.toMatchObject({
      code: 'PLUGIN_ERROR', message: expect.stringContaining('the store says -2')
    })
  })

  test('compiled from plugins/visits-assemblyscript', () =>
    compiled('plugins/visits-assemblyscript/visits.ts', async (wasm) => {
      await check(await load(wasm, writing()))
      await plugin.close()
      const call = await load(wasm)
      await expect(call('visit', 'Jane')).rejects.toMatchObject({ code: 'TRAP' })
    }))
})

// Answers with the letters that its initialization has left in memory.
const ANSWER = `
  (memory (export "memory") 1)
  (global $end (mut i32) (i32.const 0))
  (func $note (param $letter i32)
    (i32.store8 (global.get $end) (local.get $letter))
    (global.set $end (i32.add (global.get $end) (i32.const 1))))
  (func (export "answer") (result i32)
    (local $block i64) (local $i i32)
    (local.set $block (call $alloc (i64.extend_i32_u (global.get $end))))
    (loop $next
      (call $store
        (i64.add (local.get $block) (i64.extend_i32_u (local.get $i)))
        (i32.load8_u (local.get $i)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (global.get $end))))
    (call $output (local.get $block) (i64.extend_i32_u (global.get $end)))
    (i32.const 0))`

const KERNEL = `
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))`

const note = (letter) => `(call $note (i32.const ${letter.charCodeAt(0)}))`

test('TinyGo of 2023, as in the article: a command, _start and _initialize, all imports from env', async () => {
  const call = await load(await assemble(`(module
    (import "env" "extism_alloc" (func $alloc (param i64) (result i64)))
    (import "env" "extism_length" (func $length (param i64) (result i64)))
    (import "env" "extism_store_u8" (func $store (param i64 i32)))
    (import "env" "extism_output_set" (func $output (param i64 i64)))
    (import "env" "hostMemoryGet" (func $get (param i64) (result i64)))
    (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    ${ANSWER}
    (func (export "_start") (call $exit (i32.const 1)))
    (func (export "_initialize") ${note('i')})
    (func (export "say_hello") (result i32)
      (local $key i64) (local $value i64)
      (local.set $key (call $alloc (i64.const 5)))
      (call $store (local.get $key) (i32.const ${'h'.charCodeAt(0)}))
      (call $store (i64.add (local.get $key) (i64.const 1)) (i32.const ${'e'.charCodeAt(0)}))
      (call $store (i64.add (local.get $key) (i64.const 2)) (i32.const ${'l'.charCodeAt(0)}))
      (call $store (i64.add (local.get $key) (i64.const 3)) (i32.const ${'l'.charCodeAt(0)}))
      (call $store (i64.add (local.get $key) (i64.const 4)) (i32.const ${'o'.charCodeAt(0)}))
      (local.set $value (call $get (local.get $key)))
      (call $output (local.get $value) (call $length (local.get $value)))
      (i32.const 0)))`))
  expect(await call('say_hello')).toBe('👋')
  expect(await call('answer')).toBe('i')
})

test('Haskell: _initialize, then hs_init with two zeros, once', async () => {
  const call = await load(await assemble(`(module ${KERNEL} ${ANSWER}
    (func (export "_initialize") ${note('i')})
    (func (export "hs_init") (param i32 i32) (if (i32.eqz (i32.or (local.get 0) (local.get 1))) (then ${note('h')}))))`))
  expect(await call('answer')).toBe('ih')
  expect(await call('answer')).toBe('ih')
})

test('C: constructors by __wasm_call_ctors if there is no _initialize', async () => {
  const call = await load(join(ROOT, '__test__/guests/greeting.wasm'))
  expect(await call('greet', 'hello')).toBe('👋, after nothing')
  expect(await call('greet', 'hello')).toBe('👋, after hello')
})

test('Rust: an _initialize that calls the constructors itself', async () => {
  const call = await load(await assemble(`(module ${KERNEL} ${ANSWER}
    (func $constructors (export "__wasm_call_ctors") ${note('c')})
    (func (export "_initialize") ${note('i')} (call $constructors)))`))
  expect(await call('answer')).toBe('ic')
})
