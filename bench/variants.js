'use strict'

// Measures the cost of an instance for each call, and of fuel. See README.md.

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { setTimeout: delay } = require('node:timers/promises')
const { createPlugin, MemoryStore } = require('../index.js')
const { assemble } = require('../__test__/support/guest.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')
const { SAY_HELLO, MESSAGES, expectedAnswer } = require('./support/article.js')
const sdk = require('./support/sdk.js')

const IN_FLIGHT = 32
const INSTANCES = 2
const FOREGROUND = 'JavaScript SDK, foreground'

/** The options of each subject. A snapshot makes no difference for count_vowels, which has no initialization. */
const VARIANTS = {
  'extism-host': {},
  'extism-host, fuel': { fuel: 100_000_000 },
  'extism-host, isolation: call': { isolation: 'call' },
  'extism-host, isolation: call, snapshot': { isolation: 'call', snapshot: true }
}

async function measure ({ call, input, answer }, seconds) {
  let calls = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  await Promise.all(Array.from({ length: IN_FLIGHT }, async () => {
    while (performance.now() < end) {
      const output = await call(input)
      if (calls++ === 0 && output.text() !== answer) throw new Error(output.text())
    }
  }))
  return { microseconds: (performance.now() - start) * 1e3 / calls }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1 })
  const { rounds, seconds } = options
  const countVowels = await assemble(readFileSync(join(__dirname, 'support/count-vowels.wat'), 'utf8'))
  const workloads = [
    {
      function: 'say_hello',
      input: 'Jane Doe',
      answer: expectedAnswer('Jane Doe'),
      createSdk: () => sdk.createSayHello(),
      create: (options) => createPlugin(SAY_HELLO, { useWasi: true, store: new MemoryStore(MESSAGES), instances: INSTANCES, ...options })
    },
    {
      function: 'count_vowels',
      input: 'Hello, World!',
      answer: '{"count": 03}',
      createSdk: () => sdk.createPlugin({ wasm: [{ data: countVowels }] }),
      create: (options) => createPlugin(countVowels, { instances: INSTANCES, ...options })
    }
  ]
  const measured = {}
  for (const { function: name, input, answer, createSdk, create } of workloads) {
    const plugins = { [FOREGROUND]: await createSdk() }
    for (const [variant, options] of Object.entries(VARIANTS)) {
      const plugin = plugins[variant] = await create(options)
      while (plugin.stats().snapshot === 'pending') await delay(10)
    }
    const subjects = Object.entries(plugins).map(([subject, plugin]) => {
      const call = subject === FOREGROUND ? sdk.serialized(plugin) : (name, input) => plugin.call(name, input)
      return { name: subject, call: (input) => call(name, input), input, answer }
    })
    const results = measured[name] = await alternate(rounds, subjects, (subject) => measure(subject, seconds))
    const cost = (subject) => medians(results[subject]).microseconds
    printTable(`${name}, ${IN_FLIGHT} in flight, ${INSTANCES} instances: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name: subject }) => ({
      '': subject,
      'µs per call': cost(subject).toFixed(1),
      'calls/s': (1e6 / cost(subject)).toFixed(0),
      'cost ÷ SDK foreground': (cost(subject) / cost(FOREGROUND)).toFixed(2)
    })))
    for (const plugin of Object.values(plugins)) await plugin.close()
  }
  save(options, measured)
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
