'use strict'

// What large inputs and outputs cost: a guest that gives back its input. See README.md.

const { createPlugin } = require('../index.js')
const { assemble } = require('../__test__/support/guest.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')
const sdk = require('./support/sdk.js')

const MIB = 1 << 20
const SIZES = [1, 64]
const FOREGROUND = 'JavaScript SDK, foreground'

/** It copies nothing itself: its output is its input's block. */
const ECHO = `(module
  (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (func (export "echo") (result i32)
    (call $output_set (call $input_offset) (call $input_length))
    (i32.const 0)))`

async function measure ({ plugin }, input, seconds) {
  let calls = 0
  let blocked = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  do {
    const called = performance.now()
    const answer = plugin.call('echo', input)
    // What the call itself takes of the event loop; the rest is waited for.
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
  const manifest = { wasm: [{ data: await assemble(ECHO) }] }
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
