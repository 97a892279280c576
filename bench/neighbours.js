'use strict'

// Measures the latency of a plugin while all calls of another one run until their deadline. See README.md.

const { setTimeout: sleep } = require('node:timers/promises')
const { createPlugin, MemoryStore } = require('../index.js')
const { burnGuest } = require('./support/burn.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')
const { SAY_HELLO, MESSAGES, expectedAnswer } = require('./support/article.js')

const ALONE = 'alone'
const TIMEOUT = 50
const PAUSE = 2

/** Keeps all instances of a plugin busy, with calls that run until their deadline. Returns a function that stops it. */
function keepBusy (plugin, instances) {
  const state = { isStopped: false }
  const loops = Array.from({ length: instances }, async () => {
    while (!state.isStopped) {
      const error = await plugin.call('burn').then(() => undefined, (error) => error)
      if (error?.code !== 'TIMEOUT') throw error ?? new Error('a call of the neighbour returned')
    }
  })
  return () => {
    state.isStopped = true
    return Promise.all(loops)
  }
}

/** Calls about every 2 ms for this long, and returns the latencies in microseconds. */
async function trickle (plugin, seconds) {
  const times = []
  const end = performance.now() + seconds * 1e3
  while (performance.now() < end) {
    await sleep(PAUSE)
    const start = performance.now()
    const output = await plugin.call('say_hello', 'Jane Doe')
    times.push((performance.now() - start) * 1e3)
    if (output.text() !== expectedAnswer('Jane Doe')) throw new Error(`say_hello answered ${output.text()}`)
  }
  times.sort((a, b) => a - b)
  const percentile = (share) => times[Math.floor(times.length * share)]
  return { p50: percentile(0.5), p99: percentile(0.99), callsPerSecond: times.length / seconds }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 2 })
  const { rounds, seconds } = options
  const plugin = await createPlugin(SAY_HELLO, { useWasi: true, store: new MemoryStore(MESSAGES), eager: true })
  const subjects = [{ name: ALONE }]
  for (let instances = 1; instances <= 4; instances++) {
    const neighbour = await createPlugin({ wasm: [{ data: burnGuest(1e15) }] }, { instances, eager: true, timeoutMs: TIMEOUT })
    subjects.push({ name: `${instances} busy instance${instances > 1 ? 's' : ''} beside it`, neighbour, instances })
  }

  const results = await alternate(rounds, subjects, async ({ neighbour, instances }) => {
    const stop = neighbour && keepBusy(neighbour, instances)
    // Warm up, so that the process is in the measured state.
    await sleep(2 * TIMEOUT)
    const result = await trickle(plugin, seconds)
    await stop?.()
    return result
  })

  const alone = medians(results[ALONE])
  printTable(`say_hello about every ${PAUSE} ms: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name }) => {
    const { p50, p99, callsPerSecond } = medians(results[name])
    return {
      '': name,
      'p50, µs': p50.toFixed(0),
      'p99, µs': p99.toFixed(0),
      'p99 ÷ alone': (p99 / alone.p99).toFixed(2),
      'calls/s': callsPerSecond.toFixed(0)
    }
  }))
  save(options, results)
  await plugin.close()
  for (const { neighbour } of subjects) await neighbour?.close()
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
