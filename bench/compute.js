'use strict'

// Measures real work inside guests, compared to the same WebAssembly in the JavaScript SDK. See README.md.

const { existsSync, readdirSync, readFileSync } = require('node:fs')
const { join } = require('node:path')
const { createPlugin } = require('../index.js')
const { readOptions, alternate, median, medians, printTable, save } = require('./support/measure.js')
const { createWork } = require('./support/work.js')
const sdk = require('./support/sdk.js')

const BUILT = join(__dirname, 'plugins/built')
const SDK = 'SDK'

/** The SDK in the foreground, then ours, once for each entry of `interruptions` (undefined is the default). */
async function createSubjects (wasm, interruptions) {
  const subjects = [{ name: SDK, plugin: await sdk.createPlugin(wasm, { useWasi: true }) }]
  for (const interruption of interruptions) {
    subjects.push({
      name: interruption ?? 'extism-host',
      plugin: await createPlugin(wasm, { useWasi: true, eager: true, interruption })
    })
  }
  return subjects
}

async function check (subjects, { name, entry, input }) {
  const outputs = []
  for (const { plugin } of subjects) outputs.push(Buffer.from((await plugin.call(entry, input)).bytes()))
  if (outputs[0].length === 0) throw new Error(`${name} gave no output`)
  for (const [i, subject] of subjects.entries()) {
    if (!outputs[i].equals(outputs[0])) throw new Error(`${name}: "${subject.name}" gives another output than the SDK`)
  }
}

/** The CPU time of each thread of this process in milliseconds; empty except on Linux. */
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
 * Calls one by one for this long. `cpuMilliseconds` is the CPU time per call of the busiest thread, which runs the
 * guest; it does not include waiting for a core that other processes use.
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

function createRow (name, measured) {
  const cost = (subject) => {
    const { cpuMilliseconds, milliseconds } = medians(measured[subject])
    return cpuMilliseconds || milliseconds
  }
  const subjects = Object.keys(measured)
  const ours = subjects.filter((subject) => subject !== SDK)
  return Object.fromEntries([
    ['', name],
    ...subjects.map((subject) => [`${subject}, ms`, cost(subject).toFixed(2)]),
    ...ours.map((subject) => [`${subject} ÷ SDK`, (cost(subject) / cost(SDK)).toFixed(2)])
  ])
}

async function measureGuest (wasm, works, { rounds, seconds, epoch }) {
  const results = {}
  const subjects = await createSubjects(wasm, epoch ? ['page', 'epoch'] : [undefined])
  for (const { makeInput, ...work } of works) {
    console.error(work.name)
    work.input = await makeInput(subjects[0].plugin)
    await check(subjects, work)
    results[work.name] = await alternate(rounds, subjects, (subject) => measure(subject, work, seconds))
  }
  for (const { plugin } of subjects) await plugin.close()
  return results
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1, only: '', epoch: false })
  const results = {}
  for (const [guest, works] of Object.entries(createWork())) {
    const chosen = works.filter(({ name }) => name.includes(options.only))
    if (chosen.length === 0) continue
    const wasm = join(BUILT, `${guest}.wasm`)
    if (existsSync(wasm)) Object.assign(results, await measureGuest(wasm, chosen, options))
    else console.error(`left out: ${guest}.wasm is missing; build it with: bash bench/plugins/build.sh`)
  }
  const rows = Object.entries(results).map(([name, measured]) => createRow(name, measured))
  if (rows.length === 0) return
  printTable(`one call: medians of ${options.rounds} rounds of ${options.seconds} s`, rows)
  save(options, results)
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
