'use strict'

// Measures the cost of calling a host function in JavaScript from a guest. See README.md.

const { createPlugin, MemoryStore } = require('../index.js')
const { assemble } = require('../__test__/support/guest.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')
const sdk = require('./support/sdk.js')

const FOREGROUND = 'JavaScript SDK, foreground'
const WORKER = 'JavaScript SDK, worker'
const HOST = 'extism-host'
// Enough host calls in each call that the call itself hardly counts. More would slow the SDK's worker down.
const HOST_CALLS = 100
const HOST_CALLS_IN_RUST = 10_000

const ask = (name, hostCalls) => `(module
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "free" (func $free (param i64)))
  (import "extism:host/user" "${name}" (func $ask (param i64) (result i64)))
  (func (export "run") (result i32) (local $left i32)
    (local.set $left (i32.const ${hostCalls}))
    (loop $again
      (call $free (call $ask (call $input)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (i32.const 0)))`

const FORMS = {
  'that answers at once': (context, offset) => context.read(offset).text() === 'key' ? context.store('value') : 0n,
  'that answers with a promise': async (context, offset) => context.read(offset).text() === 'key' ? context.store('value') : 0n
}

async function measure ({ plugin, hostCalls = HOST_CALLS }, seconds) {
  let calls = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  do {
    await plugin.call('run', 'key')
    calls++
    // The SDK's worker slows down with each call unless it is reset in between.
    await plugin.reset?.()
  } while (performance.now() < end)
  return { microseconds: (performance.now() - start) * 1e3 / calls / hostCalls }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1 })
  const { rounds, seconds } = options
  const bytes = await assemble(ask('ask', HOST_CALLS))
  const manifest = { wasm: [{ data: bytes }] }
  const results = {}
  for (const [form, answer] of Object.entries(FORMS)) {
    // A new object for each plugin, because the SDK adds its own functions to it.
    const functions = () => ({ 'extism:host/user': { ask: answer } })
    const isAsync = form.includes('promise')
    const inRust = await assemble(ask('hostMemoryGet', HOST_CALLS_IN_RUST))
    const subjects = [
      // In the foreground, the SDK can only await if V8 can suspend WebAssembly.
      ...(isAsync ? [] : [{ name: FOREGROUND, plugin: await sdk.createPlugin(manifest, { functions: functions() }) }]),
      { name: WORKER, plugin: await sdk.createPlugin(manifest, { functions: functions(), runInWorker: true }) },
      { name: HOST, plugin: await createPlugin(manifest, { functions: functions() }) },
      ...(isAsync ? [] : [{ name: `${HOST}, hostMemoryGet in Rust`, plugin: await createPlugin(inRust, { store: new MemoryStore([['key', 'value']]) }), hostCalls: HOST_CALLS_IN_RUST }])
    ]
    const measured = await alternate(rounds, subjects, (subject) => measure(subject, seconds))
    const workload = `a host function ${form}`
    results[workload] = measured
    const cost = (name) => medians(measured[name]).microseconds
    const first = subjects[0].name
    printTable(`${workload}: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name }) => ({
      '': name,
      'µs per host call': cost(name).toFixed(2),
      [`÷ ${first}`]: (cost(name) / cost(first)).toFixed(2)
    })))
    for (const { plugin } of subjects) await plugin.close()
  }
  save(options, results)
}

main().then(() => process.exit(), (error) => {
  console.error(error)
  process.exit(1)
})
