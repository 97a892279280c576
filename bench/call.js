'use strict'

// Measures the cost of a call without HTTP: awaited one by one, and with 32 in flight. See README.md.

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { createPlugin, MemoryStore } = require('../index.js')
const { assemble } = require('../__test__/support/guest.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')
const { SAY_HELLO, MESSAGES, expectedAnswer } = require('./support/article.js')
const sdk = require('./support/sdk.js')

const IN_FLIGHT = 32
const FOREGROUND = 'JavaScript SDK, foreground'

/** Both guests, each with an input and the expected output. */
async function readGuests () {
  const countVowels = await assemble(readFileSync(join(__dirname, 'support/count-vowels.wat'), 'utf8'))
  return [
    {
      name: 'say_hello',
      input: 'Jane Doe',
      answer: expectedAnswer('Jane Doe'),
      createSdk: () => sdk.createSayHello(),
      create: (instances) =>
        createPlugin(SAY_HELLO, { useWasi: true, store: new MemoryStore(MESSAGES), instances, eager: true })
    },
    {
      name: 'count_vowels',
      input: 'Hello, World!',
      answer: '{"count": 03}',
      createSdk: () => sdk.createPlugin({ wasm: [{ data: countVowels }] }),
      create: (instances) => createPlugin({ wasm: [{ data: countVowels }] }, { instances, eager: true })
    }
  ]
}

async function createSubjects (guest) {
  const foreground = await guest.createSdk()
  const one = await guest.create(1)
  const two = await guest.create(2)
  const bound = (plugin) => (name, input) => plugin.call(name, input)
  return [
    // In the foreground, concurrent calls of the SDK get each other's outputs, so they run one after the other.
    { name: FOREGROUND, call: bound(foreground), callInFlight: sdk.serialized(foreground), plugin: foreground },
    { name: 'extism-host, 1 instance', call: bound(one), callInFlight: bound(one), plugin: one },
    { name: 'extism-host, 2 instances', call: bound(two), callInFlight: bound(two), plugin: two }
  ]
}

async function check (guest, { name, callInFlight }) {
  const outputs = await Promise.all(Array.from({ length: IN_FLIGHT }, () => callInFlight(guest.name, guest.input)))
  for (const output of outputs) {
    if (output.text() !== guest.answer) throw new Error(`"${name}" answered ${guest.name} with ${output.text()}`)
  }
}

/** Calls for this long from this many concurrent loops, and returns the microseconds per call. */
async function measure (call, { name, input }, seconds, inFlight) {
  let calls = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  async function loop () {
    while (performance.now() < end) {
      await call(name, input)
      calls++
    }
  }
  await Promise.all(Array.from({ length: inFlight }, loop))
  return { microseconds: (performance.now() - start) * 1e3 / calls }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1 })
  const { rounds, seconds } = options
  const results = {}
  for (const guest of await readGuests()) {
    const subjects = await createSubjects(guest)
    for (const subject of subjects) await check(guest, subject)
    for (const inFlight of [1, IN_FLIGHT]) {
      const workload = `${guest.name}, ${inFlight === 1 ? 'awaited one by one' : `${inFlight} in flight`}`
      const measured = await alternate(rounds, subjects, (subject) =>
        measure(inFlight === 1 ? subject.call : subject.callInFlight, guest, seconds, inFlight))
      results[workload] = measured
      const cost = (name) => medians(measured[name]).microseconds
      printTable(`${workload}: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name }) => ({
        '': name,
        'µs per call': cost(name).toFixed(1),
        'calls/s': (1e6 / cost(name)).toFixed(0),
        'cost ÷ SDK foreground': (cost(name) / cost(FOREGROUND)).toFixed(2)
      })))
    }
    for (const { plugin } of subjects) await plugin.close()
  }
  save(options, results)
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
