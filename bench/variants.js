'use strict'

// What an instance for each call costs, and fuel. See README.md.

const { setTimeout: delay } = require('node:timers/promises')
const { createPlugin, MemoryStore } = require('../index.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')
const { SAY_HELLO, MESSAGES, expectedAnswer } = require('./support/article.js')
const sdk = require('./support/sdk.js')

const IN_FLIGHT = 32
const INSTANCES = 2
const FOREGROUND = 'JavaScript SDK, foreground'

function create (options) {
  return createPlugin(SAY_HELLO, { useWasi: true, store: new MemoryStore(MESSAGES), instances: INSTANCES, ...options })
}

async function measure ({ call }, seconds) {
  let calls = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  await Promise.all(Array.from({ length: IN_FLIGHT }, async () => {
    while (performance.now() < end) {
      const output = await call('say_hello', 'Jane Doe')
      if (calls++ === 0 && output.text() !== expectedAnswer('Jane Doe')) throw new Error(output.text())
    }
  }))
  return { microseconds: (performance.now() - start) * 1e3 / calls }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1 })
  const { rounds, seconds } = options
  const plugins = {
    [FOREGROUND]: await sdk.createSayHello(),
    'extism-host': await create(),
    'extism-host, fuel': await create({ fuel: 100_000_000 }),
    'extism-host, isolation: call': await create({ isolation: 'call' }),
    'extism-host, isolation: call, snapshot': await create({ isolation: 'call', snapshot: true })
  }
  while (plugins['extism-host, isolation: call, snapshot'].stats().snapshot === 'pending') await delay(10)
  const subjects = Object.entries(plugins).map(([name, plugin]) => ({
    name,
    call: name === FOREGROUND ? sdk.serialized(plugin) : (name, input) => plugin.call(name, input)
  }))
  const results = await alternate(rounds, subjects, (subject) => measure(subject, seconds))
  const cost = (name) => medians(results[name]).microseconds
  printTable(`say_hello, ${IN_FLIGHT} in flight, ${INSTANCES} instances: medians of ${rounds} rounds of ${seconds} s`, subjects.map(({ name }) => ({
    '': name,
    'µs per call': cost(name).toFixed(1),
    'calls/s': (1e6 / cost(name)).toFixed(0),
    'cost ÷ SDK foreground': (cost(name) / cost(FOREGROUND)).toFixed(2)
  })))
  save(options, results)
  for (const plugin of Object.values(plugins)) await plugin.close()
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
