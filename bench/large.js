'use strict'

// Measures the cost of large inputs and outputs, with a guest that copies its input to its output. See README.md.

const { createPlugin } = require('../index.js')
const { assemble } = require('../__test__/support/guest.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')
const sdk = require('./support/sdk.js')

const MIB = 1 << 20
const SIZES = [1, 64]
const FOREGROUND = 'JavaScript SDK, foreground'

/**
 * The guest reads its input and writes its output eight bytes at a time, like Extism's PDKs. (Returning the input's own
 * block would cost the SDK nothing at all, because its kernel is in JavaScript.)
 */
const COPY = `(module
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u64" (func $input_load_u64 (param i64) (result i64)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (func (export "copy") (result i32) (local $length i64) (local $block i64) (local $i i64)
    (local.set $length (call $input_length))
    (local.set $block (call $alloc (local.get $length)))
    (loop $next
      (call $store_u64 (i64.add (local.get $block) (local.get $i)) (call $input_load_u64 (local.get $i)))
      (local.set $i (i64.add (local.get $i) (i64.const 8)))
      (br_if $next (i64.lt_u (local.get $i) (local.get $length))))
    (call $output_set (local.get $block) (local.get $length))
    (i32.const 0)))`

async function measure ({ plugin }, input, seconds) {
  let calls = 0
  let blocked = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  do {
    const called = performance.now()
    const answer = plugin.call('copy', input)
    // The time that the call blocks the event loop; for the rest it only waits.
    blocked += performance.now() - called
    const output = await answer
    if (output.byteLength !== input.length) throw new Error(`${output.byteLength} bytes came back`)
    calls++
  } while (performance.now() < end)
  return { milliseconds: (performance.now() - start) / calls, untilReturn: blocked / calls }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1 })
  const { rounds, seconds } = options
  const manifest = { wasm: [{ data: await assemble(COPY) }] }
  const subjects = [
    { name: FOREGROUND, plugin: await sdk.createPlugin(manifest) },
    { name: 'extism-host, 1 instance', plugin: await createPlugin(manifest, { memory: { maxPages: 8192 } }) }
  ]
  const results = {}
  for (const size of SIZES) {
    const input = new Uint8Array(size * MIB).fill(1)
    const workload = `${size} MiB in and out`
    const measured = await alternate(rounds, subjects, (subject) => measure(subject, input, seconds))
    results[workload] = measured
    const cost = (name) => medians(measured[name])
    printTable(`${workload}, awaited one by one: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name }) => ({
      '': name,
      'ms per call': cost(name).milliseconds.toFixed(2),
      'ms until call() returns': cost(name).untilReturn.toFixed(2),
      'cost ÷ SDK foreground': (cost(name).milliseconds / cost(FOREGROUND).milliseconds).toFixed(2)
    })))
  }
  save(options, results)
  for (const { plugin } of subjects) await plugin.close()
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
