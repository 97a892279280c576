'use strict'

// Metrics of this process: its event loop and its threads.

const { readFileSync } = require('node:fs')
const { monitorEventLoopDelay } = require('node:perf_hooks')
const { Gauge } = require('prom-client')

/** The number of threads of this process; `undefined` without Linux's /proc. */
function threads () {
  try {
    return Number(/^Threads:\s+(\d+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1])
  } catch {
    return undefined
  }
}

/** Returns a function that stops measuring. */
function showProcess (registers) {
  const delays = monitorEventLoopDelay({ resolution: 20 })
  delays.enable()
  const gauge = (options) => new Gauge({ registers, ...options })
  let last = performance.eventLoopUtilization()
  gauge({
    name: 'extism_event_loop_utilization',
    help: 'The share of time that the event loop was busy since the last scrape, from 0 to 1',
    collect () {
      const now = performance.eventLoopUtilization()
      this.set(performance.eventLoopUtilization(now, last).utilization)
      last = now
    }
  })
  // Prometheus knows quantiles as labels of summaries only, and those never start anew.
  const showDelay = (name, help, read) => gauge({
    name: `extism_event_loop_delay_${name}_seconds`,
    help,
    // Without a sample, the histogram has no maximum.
    collect () { if (delays.count > 0) this.set(read() / 1e9) }
  })
  showDelay('p99', 'The 99th percentile of how late the event loop runs timers, since the last scrape', () => delays.percentile(99))
  showDelay('max', 'How late the event loop runs timers at most, since the last scrape', () => {
    const { max } = delays
    delays.reset()
    return max
  })
  if (threads() !== undefined) {
    gauge({
      name: 'extism_process_threads',
      help: 'Threads of the process',
      collect () { this.set(threads()) }
    })
  }
  return () => delays.disable()
}

module.exports = { showProcess }
