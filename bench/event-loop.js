'use strict'

// Measures how long a computing plugin blocks the event loop. See README.md.

const { monitorEventLoopDelay } = require('node:perf_hooks')
const { setImmediate: nextTurn, setTimeout: sleep } = require('node:timers/promises')
const sdk = require('@extism/extism')
const { createPlugin } = require('../index.js')
const { burnGuest } = require('./support/burn.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const CALL_MILLISECONDS = 100
const IDLE = 'idle'

async function timeOf (plugin) {
  const start = performance.now()
  await plugin.call('burn')
  return performance.now() - start
}

/**
 * Returns a guest whose calls take about 100 ms. The number of iterations depends on the engine, so it is calibrated by
 * the shortest of a few calls: other load only makes calls longer, and an engine may run the first calls slower.
 */
async function calibrate (create) {
  let iterations = 10_000_000
  for (;;) {
    const guest = burnGuest(Math.round(iterations))
    const plugin = await create(guest)
    const times = []
    for (let i = 0; i < 6; i++) times.push(await timeOf(plugin))
    await plugin.close()
    const time = Math.min(...times)
    if (time > CALL_MILLISECONDS * 0.8 && time < CALL_MILLISECONDS * 1.25) return guest
    iterations *= CALL_MILLISECONDS / time
  }
}

/** Calls one after another from one loop for each instance, with a turn of the event loop in between. */
async function burn ({ plugin, instances }, seconds) {
  const start = performance.now()
  const end = start + seconds * 1e3
  let calls = 0
  await Promise.all(Array.from({ length: instances }, async () => {
    while (performance.now() < end) {
      await plugin.call('burn')
      calls++
      await nextTurn()
    }
  }))
  return calls / (performance.now() - start) * 1e3
}

async function measure (subject, seconds) {
  const histogram = monitorEventLoopDelay({ resolution: 1 })
  histogram.enable()
  const callsPerSecond = subject.name === IDLE ? await sleep(seconds * 1e3, 0) : await burn(subject, seconds)
  // The delay that the last call caused is recorded by the next tick of the histogram's timer.
  await sleep(5)
  histogram.disable()
  const milliseconds = (nanoseconds) => nanoseconds / 1e6
  return {
    p50: milliseconds(histogram.percentile(50)),
    p99: milliseconds(histogram.percentile(99)),
    max: milliseconds(histogram.max),
    callsPerSecond
  }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 2 })
  const { rounds, seconds } = options
  const createSdk = (data) => sdk.createPlugin({ wasm: [{ data }] })
  const create = (data, instances) => createPlugin({ wasm: [{ data }] }, { instances, eager: true })

  const foreground = await createSdk(await calibrate(createSdk))
  const guest = await calibrate(create)
  const subjects = [
    { name: IDLE },
    { name: 'JavaScript SDK, foreground', plugin: foreground, instances: 1 },
    { name: 'extism-host, 1 busy instance', plugin: await create(guest, 1), instances: 1 },
    { name: 'extism-host, 2 busy instances', plugin: await create(guest, 2), instances: 2 }
  ]

  const results = await alternate(rounds, subjects, (subject) => measure(subject, seconds))
  const idle = medians(results[IDLE])
  printTable(`Delay of the event loop in ms, over idle: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name }) => {
    const found = medians(results[name])
    const base = name === IDLE ? { p50: 0, p99: 0, max: 0 } : idle
    return {
      '': name === IDLE ? 'idle (as it is)' : name,
      p50: (found.p50 - base.p50).toFixed(2),
      p99: (found.p99 - base.p99).toFixed(2),
      max: (found.max - base.max).toFixed(2),
      'calls/s': name === IDLE ? '–' : found.callsPerSecond.toFixed(1)
    }
  }))
  save(options, results)
  for (const { plugin } of subjects) await plugin?.close()
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
