'use strict'

// Measures how CPU-bound work scales from one instance to two. See README.md.

const sdk = require('@extism/extism')
const { createPlugin } = require('../index.js')
const { burnGuest } = require('./support/burn.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

/** About 5 ms per call, long compared to the overhead of a call. */
const ITERATIONS = 10_000_000
const ONE = 'extism-host, 1 instance'

/** The calls per second, with two calls in flight for each instance. */
async function measure ({ plugin, instances }, seconds) {
  let calls = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  await Promise.all(Array.from({ length: 2 * instances }, async () => {
    while (performance.now() < end) {
      await plugin.call('burn')
      calls++
    }
  }))
  return { callsPerSecond: calls / (performance.now() - start) * 1e3 }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1 })
  const { rounds, seconds } = options
  const manifest = { wasm: [{ data: burnGuest(ITERATIONS) }] }
  const subjects = [
    { name: 'JavaScript SDK, foreground', plugin: await sdk.createPlugin(manifest), instances: 1 },
    { name: ONE, plugin: await createPlugin(manifest, { instances: 1 }), instances: 1 },
    { name: 'extism-host, 2 instances', plugin: await createPlugin(manifest, { instances: 2, eager: true }), instances: 2 }
  ]
  const results = await alternate(rounds, subjects, (subject) => measure(subject, seconds))
  const rate = (name) => medians(results[name]).callsPerSecond
  printTable(`CPU-bound calls: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name }) => ({
    '': name,
    'calls/s': rate(name).toFixed(0),
    '× 1 instance': (rate(name) / rate(ONE)).toFixed(2)
  })))
  save(options, results)
  for (const { plugin } of subjects) await plugin.close()
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
