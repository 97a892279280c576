'use strict'

// Measures the cost of reading a store on Redis from a plugin, with and without its cache, compared to a store in
// memory; and the time until a plugin sees another process's write. See README.md.

const { fork } = require('node:child_process')
const { once } = require('node:events')
const { createPlugin, openStore } = require('../index.js')
const { assemble } = require('../__test__/support/guest.js')
const { startRedis } = require('../__test__/support/redis.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const READS = 1_000

/** The number of reads in each call, so many that the call itself hardly counts. */
const READ = `(module
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "free" (func $free (param i64)))
  (import "extism:host/user" "hostMemoryGet" (func $get (param i64) (result i64)))
  (func (export "run") (result i32) (local $left i32)
    (local.set $left (i32.const ${READS}))
    (loop $again
      (call $free (call $get (call $input)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (i32.const 0)))`

async function measure ({ plugin }, seconds) {
  let calls = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  do {
    await plugin.call('run', 'key')
    calls++
  } while (performance.now() < end)
  return { nanoseconds: (performance.now() - start) * 1e6 / calls / READS }
}

/** For many writes of another process, the milliseconds from the acknowledgement there until they could be read here. */
async function measureDelays (url, writes) {
  const store = await openStore(url)
  const writer = fork(require.resolve('./children/redis-writer.js'), [url, String(writes)])
  const acknowledged = []
  writer.on('message', (at) => acknowledged.push(BigInt(at)))
  const seen = []
  const ended = once(writer, 'exit')
  while (seen.length < writes) {
    const newest = Number(await store.get('written') ?? 0)
    const now = process.hrtime.bigint()
    while (seen.length < newest) seen.push(now)
    await new Promise((resolve) => setImmediate(resolve))
  }
  await ended
  await store.close()
  const delays = seen.map((at, place) => Math.max(0, Number(at - acknowledged[place]) / 1e6))
  return delays.sort((one, other) => one - other)
}

async function main () {
  const options = readOptions({ rounds: 5, seconds: 1, writes: 2_000 })
  const { rounds, seconds, writes } = options
  const server = await startRedis()
  try {
    const bytes = await assemble(READ)
    const subjects = []
    for (const [name, ...source] of [['memory:', 'memory:'], ['redis:', server.url], ['redis:, no cache', server.url, { cacheBytes: 0 }]]) {
      const store = await openStore(...source)
      await store.set('key', 'I 💜 Extism')
      subjects.push({ name, store, plugin: await createPlugin({ wasm: [{ data: bytes }] }, { store, instances: 1 }) })
    }
    const reads = await alternate(rounds, subjects, (subject) => measure(subject, seconds))
    printTable(`A read of a hot key by a plugin: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name }) => ({
      store: name, 'ns/read': medians(reads[name]).nanoseconds.toFixed(0)
    })))
    for (const { plugin, store } of subjects) {
      await plugin.close()
      await store.close()
    }
    const delays = await measureDelays(server.url, writes)
    const at = (share) => delays[Math.min(delays.length - 1, Math.floor(delays.length * share))]
    console.log(`\nTime until a change by another process can be read (ms): p50 ${at(0.5).toFixed(3)}, p99 ${at(0.99).toFixed(3)}, at most ${at(1).toFixed(3)}`)
    save(options, { reads, delays: { p50: at(0.5), p99: at(0.99), most: at(1) } })
  } finally {
    await server.stop()
  }
}

main()
