'use strict'

// Measures the CPU time of a call, on all threads, while nobody listens, with metrics, with a listener and with
// OpenTelemetry. See README.md.

const { tracingChannel } = require('node:diagnostics_channel')
const { BatchSpanProcessor, NodeTracerProvider } = require('@opentelemetry/sdk-trace-node')
const { ExtismHostInstrumentation } = require('@extism-host/otel')
const { createPlugin, MemoryStore } = require('..')
const { TIMED_CALL } = require('../lib/internal.js')
const { SAY_HELLO, MESSAGES } = require('./support/article.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const BATCHES = 8
const IN_FLIGHT = 32
const NONE = 'nobody listens'

async function main () {
  const options = readOptions({ rounds: 99 })
  const plugin = await createPlugin(SAY_HELLO, { useWasi: true, store: new MemoryStore(MESSAGES) })
  const nobody = { export: (spans, done) => done({ code: 0 }), shutdown: async () => {}, forceFlush: async () => {} }
  new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(nobody)] }).register()
  const instrumentation = new ExtismHostInstrumentation({ enabled: false })
  const channel = tracingChannel('extism-host:call')
  const listener = { asyncEnd () {} }
  const nothing = () => {}

  const call = () => plugin.call('say_hello', 'Jane Doe')
  const subjects = [
    { name: NONE, call, before: nothing, after: nothing },
    { name: 'metrics', call: () => plugin[TIMED_CALL]('say_hello', 'Jane Doe', undefined, undefined, {}), before: nothing, after: nothing },
    { name: 'a listener to extism-host:call', call, before: () => channel.subscribe(listener), after: () => channel.unsubscribe(listener) },
    { name: 'OpenTelemetry, 3 spans', call, before: () => instrumentation.enable(), after: () => instrumentation.disable() }
  ]
  const results = await alternate(options.rounds, subjects, async ({ call, before, after }) => {
    before()
    const start = process.cpuUsage()
    for (let batch = 0; batch < BATCHES; batch++) await Promise.all(Array.from({ length: IN_FLIGHT }, call))
    const { user, system } = process.cpuUsage(start)
    after()
    return { microseconds: (user + system) / (BATCHES * IN_FLIGHT) }
  })
  const least = (name) => Math.min(...results[name].map(({ microseconds }) => microseconds))
  printTable(`CPU µs per call of say_hello, with two reads of its store: ${options.rounds} rounds`, subjects.map(({ name }) => ({
    tracing: name,
    median: medians(results[name]).microseconds.toFixed(1),
    least: least(name).toFixed(1),
    'least, more than without': (least(name) - least(NONE)).toFixed(1)
  })))
  save(options, results)
  process.exit()
}

main()
