'use strict'

// Measures the throughput of a store, and its size on disk and in memory. See README.md.

const { statSync } = require('node:fs')
const { parseArgs } = require('node:util')
const { createPlugin, openStore } = require('../index.js')
const { assemble } = require('../__test__/support/guest.js')
const { printTable, save } = require('./support/measure.js')

const HOST_CALLS = 100
/** The batch size for filling the store. */
const BATCH = 1_000

/** The guest reads its input's key from the store this often in each call, so that the call itself hardly counts. */
const READ = `(module
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "free" (func $free (param i64)))
  (import "extism:host/user" "hostMemoryGet" (func $get (param i64) (result i64)))
  (func (export "run") (result i32) (local $left i32)
    (local.set $left (i32.const ${HOST_CALLS}))
    (loop $again
      (call $free (call $get (call $input)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (i32.const 0)))`

function options () {
  const { values, positionals: [url] } = parseArgs({
    allowPositionals: true,
    options: {
      keys: { type: 'string', default: '100000' },
      bytes: { type: 'string', default: '100' },
      seconds: { type: 'string', default: '1' },
      json: { type: 'string' }
    }
  })
  const numbers = ['keys', 'bytes', 'seconds'].map((name) => Number(values[name]))
  if (url === undefined || !numbers.every((number) => Number.isInteger(number) && number > 0)) {
    console.error('usage: node bench/stores.js <URL of a store> [--keys 100000] [--bytes 100] [--seconds 1] [--json file]')
    process.exit(1)
  }
  const [keys, bytes, seconds] = numbers
  return { url, keys, bytes, seconds, json: values.json }
}

const keyOf = (number) => `bench:${String(number).padStart(10, '0')}`

/** The microseconds per operation, with this many operations in flight. */
async function measure (seconds, inFlight, operation) {
  const latencies = []
  const start = performance.now()
  const end = start + seconds * 1e3
  let last = start
  await Promise.all(Array.from({ length: inFlight }, async () => {
    for (let begun = start; begun < end; begun = last) {
      await operation()
      last = performance.now()
      latencies.push(last - begun)
    }
  }))
  latencies.sort((one, other) => one - other)
  const microseconds = (last - start) * 1e3 / latencies.length
  return {
    microseconds,
    perSecond: 1e6 / microseconds,
    p50: latencies[latencies.length >> 1] * 1e3,
    p99: latencies[Math.floor(latencies.length * 0.99)] * 1e3
  }
}

/** The resident bytes of this process, after a garbage collection if Node exposes it. */
function residentBytes () {
  globalThis.gc?.()
  return process.memoryUsage.rss()
}

async function fill (store, keys, bytes) {
  for (let number = 0; number < keys; number += BATCH) {
    const count = Math.min(BATCH, keys - number)
    await store.setMany(Array.from({ length: count }, (_, place) => [keyOf(number + place), Buffer.alloc(bytes, number + place)]))
  }
}

async function main () {
  const { url, keys, bytes, seconds, json } = options()
  const before = residentBytes()
  const store = await openStore(url)
  const start = performance.now()
  await fill(store, keys, bytes)
  const filling = (performance.now() - start) * 1e3 / keys
  const filled = residentBytes()

  let next = 0
  // Steps of a prime number, so that neighbouring keys are not read one after the other.
  const anyKey = () => keyOf((next += 7_919) % keys)
  const value = Buffer.alloc(bytes, 'v')
  const plugin = await createPlugin(await assemble(READ), { store })
  const operations = {
    get: () => store.get(anyKey()),
    set: () => store.set(anyKey(), value),
    increment: () => store.increment('bench counter')
  }
  const results = {}
  for (const [name, operation] of Object.entries(operations)) {
    for (const inFlight of [1, 16, 256]) results[`${name}, ${inFlight} at once`] = await measure(seconds, inFlight, operation)
  }
  const read = await measure(seconds, 1, () => plugin.call('run', anyKey()))
  for (const name of Object.keys(read)) read[name] *= name === 'perSecond' ? HOST_CALLS : 1 / HOST_CALLS
  results['hostMemoryGet in a plugin'] = read
  await plugin.close()

  let listed = 0
  const list = performance.now()
  for await (const key of store.keys({ prefix: 'bench:' })) listed += key.length > 0
  const listing = (performance.now() - list) * 1e3 / listed
  const used = residentBytes()
  await store.close()

  const path = /^redb:(.*)/.exec(url)?.[1]
  const size = path === undefined ? undefined : statSync(decodeURIComponent(path)).size
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`
  printTable(`${url.split(':')[0]}: ${keys} keys with ${bytes} bytes each`, [
    { '': 'to set a key, 1,000 at once', is: `${filling.toFixed(2)} µs` },
    { '': 'to list a key', is: `${listing.toFixed(2)} µs` },
    { '': 'resident memory before', is: megabytes(before) },
    { '': 'resident memory with the keys', is: megabytes(filled) },
    { '': 'resident memory at the end', is: megabytes(used) },
    ...(size === undefined ? [] : [{ '': 'the file', is: megabytes(size) }])
  ])
  printTable(`each for ${seconds} s`, Object.entries(results).map(([name, { perSecond, microseconds, p50, p99 }]) => ({
    '': name,
    'per second': perSecond.toFixed(0),
    'µs each': microseconds.toFixed(2),
    'p50 µs': p50.toFixed(1),
    'p99 µs': p99.toFixed(1)
  })))
  save({ json, store: url.split(':')[0], keys, bytes, seconds }, { filling, listing, before, filled, used, size, ...results })
}

main().then(() => process.exit(), (error) => {
  console.error(error)
  process.exit(1)
})
