'use strict'

// Metrics of plugins for Prometheus.

const { Counter, Gauge, Histogram, Registry } = require('prom-client')
const { showConnectorCalls } = require('./connector-metrics.js')
const { probeOptions } = require('./health.js')
const { showProcess } = require('./process-metrics.js')

// Calls take from tens of microseconds to seconds.
const BUCKETS = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

/** Counts the calls of plugins as they end. */
function observeCalls (registers, plugins) {
  const calls = new Counter({
    name: 'extism_plugin_calls_total',
    help: 'Calls that have ended, by result: OK, or the code of the error',
    labelNames: ['plugin', 'function', 'code'],
    registers
  })
  const durations = new Histogram({
    name: 'extism_plugin_call_duration_seconds',
    help: 'Duration of calls, including the time in the queue',
    labelNames: ['plugin', 'function'],
    buckets: BUCKETS,
    registers
  })
  const queued = new Histogram({
    name: 'extism_plugin_call_queue_seconds',
    help: 'How long calls waited for an instance',
    labelNames: ['plugin'],
    buckets: BUCKETS,
    registers
  })
  const running = new Histogram({
    name: 'extism_plugin_call_run_seconds',
    help: 'How long calls ran in an instance',
    labelNames: ['plugin', 'function'],
    buckets: BUCKETS,
    registers
  })
  plugins.observe((plugin, functionName, code, seconds, { queueMs, runMs }) => {
    // Callers can pass any name, and Prometheus keeps each label forever: only real functions get one.
    const isFunction = typeof functionName === 'string' && code !== 'FUNCTION_NOT_FOUND'
    const label = isFunction ? functionName : ''
    calls.inc({ plugin, function: label, code })
    durations.observe({ plugin, function: label }, seconds)
    if (queueMs !== undefined) queued.observe({ plugin }, queueMs / 1e3)
    if (runMs !== undefined) running.observe({ plugin, function: label }, runMs / 1e3)
  })
}

/** Exports the plugins' own counters, of all versions together. */
function showStats (registers, plugins) {
  const show = (Metric, name, help, read, label) => new Metric({
    name: `extism_plugin_${name}`,
    help,
    labelNames: label === undefined ? ['plugin'] : ['plugin', label],
    registers,
    collect () {
      this.reset()
      for (const plugin of plugins.names) {
        const value = read(plugins.plugin(plugin).statsOfAllVersions())
        if (label === undefined) this.inc({ plugin }, value)
        else for (const [key, one] of Object.entries(value)) this.inc({ plugin, [label]: key }, one)
      }
    }
  })
  show(Gauge, 'queued_calls', 'Calls that wait for an instance', ({ queued }) => queued)
  show(Gauge, 'busy_instances', 'Instances that run a call', ({ busy }) => busy)
  show(Gauge, 'instances', 'Instances', ({ instances }) => instances)
  show(Gauge, 'ready_instances', 'Instances that wait for a call', ({ ready }) => ready)
  show(Counter, 'instances_made_total', 'Instances that were made and initialized', ({ made }) => made)
  show(Counter, 'waited_calls_total', 'Calls that found no instance ready', ({ waited }) => waited)
  show(Gauge, 'threads', 'Native threads of instances, stuck ones included', ({ instances, abandonedThreads }) => instances + abandonedThreads)
  show(Gauge, 'memory_bytes', 'Memory of all instances', ({ memoryBytes }) => memoryBytes)
  show(Gauge, 'code_bytes', 'Size of the compiled code', ({ codeBytes }) => codeBytes)
  show(Gauge, 'info', 'The version that serves, as a label; the value is always 1', ({ version }) => ({ [version]: 1 }), 'version')
  show(Counter, 'versions_total', 'Versions that have served', ({ versions }) => versions)
  show(Gauge, 'abandoned_threads', 'Threads that are stuck in host calls', ({ abandonedThreads }) => abandonedThreads)
  show(Counter, 'instances_replaced_total', 'Instances that were replaced, by reason', ({ replaced }) => replaced, 'reason')
  show(Counter, 'store_reads_total', 'Keys that guests have looked up', ({ store }) => store.reads)
  show(Counter, 'store_hits_total', 'Keys that guests have looked up and that had a value', ({ store }) => store.hits)
  show(Counter, 'store_writes_total', 'Changes that guests have made', ({ store }) => store.writes)
  show(Counter, 'store_failures_total', 'Operations of guests that were refused or failed, by code', ({ store }) => store.failed, 'code')
}

/** The counters of a trigger that are outcomes of messages, with their labels. */
const OUTCOMES = { handled: 'handled', failed: 'failed', redelivered: 'redelivered', deadLettered: 'dead_lettered', dropped: 'dropped' }

/** Exports the counters of the triggers. Triggers with the same labels add up. */
function showTriggers (registers, triggers) {
  const show = (metric, labelNames, add) => metric({
    labelNames: ['trigger', 'plugin', 'function', ...labelNames],
    registers,
    collect () {
      this.reset()
      for (const { labels, trigger } of triggers.list) add(this, labels, trigger.stats())
    }
  })
  const counter = (options) => new Counter({
    name: 'extism_trigger_messages_total',
    help: 'Messages of triggers, by outcome; failed and redelivered count each delivery',
    ...options
  })
  const gauge = (name, help) => (options) => new Gauge({ name: `extism_trigger_${name}_messages`, help, ...options })
  show(counter, ['outcome'], (metric, labels, stats) => {
    for (const [key, outcome] of Object.entries(OUTCOMES)) metric.inc({ ...labels, outcome }, stats[key])
  })
  show(gauge('in_flight', 'Messages of triggers whose call is running'), [], (metric, labels, { inFlight }) => metric.inc(labels, inFlight))
  show(gauge('pending', 'Messages of triggers that wait for a call'), [], (metric, labels, { pending }) => metric.inc(labels, pending))
}

/** Adds metrics to a registry of their own and to `register`, which outlives the app. */
function addMetrics (scope, { prefix, config, register }, plugins, triggers) {
  const registry = new Registry()
  const registers = register === undefined ? [registry] : [register, registry]
  observeCalls(registers, plugins)
  showStats(registers, plugins)
  showTriggers(registers, triggers)
  showConnectorCalls(registers, plugins)
  const stopProcess = showProcess(registers)
  scope.addHook('onClose', async () => {
    stopProcess()
    for (const { name } of registry.getMetricsAsArray()) register?.removeSingleMetric(name)
  })
  if (prefix === undefined) return
  scope.get(prefix, probeOptions(config), async (request, reply) => {
    reply.type(registers[0].contentType)
    return registers[0].metrics()
  })
}

module.exports = { addMetrics }
