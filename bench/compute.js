'use strict'

// Real work inside of guests, beside the same WebAssembly in the JavaScript SDK. See README.md.

const { existsSync, readdirSync, readFileSync } = require('node:fs')
const { join } = require('node:path')
const { createPlugin } = require('../index.js')
const { readOptions, alternate, median, medians, printTable, save } = require('./support/measure.js')
const { createWork } = require('./support/work.js')
const sdk = require('./support/sdk.js')

const BUILT = join(__dirname, 'plugins/built')
const FOREGROUND = 'SDK'

/** One subject for each way of interrupting, after the SDK's foreground. */
async function createSubjects (wasm, interruptions) {
  const ours = interruptions.map(async (interruption) => ({
    name: interruption, plugin: await createPlugin(wasm, { useWasi: true, eager: true, interruption })
  }))
  return [{ name: FOREGROUND, plugin: await sdk.createPlugin(wasm, { useWasi: true }) }, ...await Promise.all(ours)]
}

async function check (subjects, { name, entry, input }) {
  const [expected, ...others] = []
    .concat(await Promise.all(subjects.map(async ({ plugin }) => (await plugin.call(entry, input)).bytes())))
    .map((bytes) => Buffer.from(bytes))
  if (expected.length === 0) throw new Error(`${name} gave no output`)
  for (const [i, output] of others.entries()) {
    if (!output.equals(expected)) throw new Error(`${name}: "${subjects[i + 1].name}" gives another output than the SDK`)
  }
}

/** Milliseconds of CPU time that each thread of this process has had; empty except on Linux. */
function readThreadTimes () {
  const times = new Map()
  if (!existsSync('/proc/self/task')) return times
  for (const thread of readdirSync('/proc/self/task')) {
    try {
      times.set(thread, Number(readFileSync(`/proc/self/task/${thread}/schedstat`, 'utf8').split(' ')[0]) / 1e6)
    } catch {
      // The thread has ended, or the kernel does not count.
    }
  }
  return times
}

/**
 * Calls one by one for that long. `cpuMilliseconds` is what a call takes of the busiest thread, which runs the guest;
 * waiting for a core, as other processes make it do, does not count.
 */
async function measure ({ plugin }, { entry, input }, seconds) {
  const times = []
  const before = readThreadTimes()
  const end = performance.now() + seconds * 1e3
  do {
    const start = performance.now()
    await plugin.call(entry, input)
    times.push(performance.now() - start)
  } while (performance.now() < end)
  const used = Array.from(readThreadTimes(), ([thread, time]) => time - (before.get(thread) ?? 0))
  return { milliseconds: median(times), cpuMilliseconds: Math.max(0, ...used) / times.length }
}

async function measureWork (subjects, work, { rounds, seconds }) {
  await check(subjects, work)
  return alternate(rounds, subjects, (subject) => measure(subject, work, seconds))
}

function row (name, measured) {
  const cost = (subject) => {
    const { cpuMilliseconds, milliseconds } = medians(measured[subject])
    return cpuMilliseconds || milliseconds
  }
  const [first, ...ours] = Object.keys(measured)
  return {
    '': name,
    'SDK, ms': cost(first).toFixed(2),
    ...Object.fromEntries(ours.map((subject) => [`${subject}, ms`, cost(subject).toFixed(2)])),
    ...Object.fromEntries(ours.map((subject) => [`${subject} ÷ SDK`, (cost(subject) / cost(first)).toFixed(2)]))
  }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1, only: '', interruption: 'page' })
  const interruptions = options.interruption === 'both' ? ['page', 'epoch'] : [options.interruption]
  const results = {}
  for (const [guest, works] of Object.entries(createWork())) {
    const chosen = works.filter(({ name }) => name.includes(options.only))
    const wasm = join(BUILT, `${guest}.wasm`)
    if (chosen.length === 0) continue
    if (!existsSync(wasm)) {
      console.error(`left out: ${chosen.map(({ name }) => name).join(', ')}. ${guest}.wasm is built with: bash bench/plugins/build.sh`)
      continue
    }
    const subjects = await createSubjects(wasm, interruptions)
    for (const { makeInput, ...work } of chosen) {
      console.error(work.name)
      const input = await makeInput(async (name, input) => (await subjects[0].plugin.call(name, input)).bytes())
      results[work.name] = await measureWork(subjects, { ...work, input }, options)
    }
    for (const { plugin } of subjects) await plugin.close()
  }
  const rows = Object.entries(results).map(([name, measured]) => row(name, measured))
  if (rows.length > 0) printTable(`one call: medians of ${options.rounds} rounds of ${options.seconds} s`, rows)
  save(options, results)
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
