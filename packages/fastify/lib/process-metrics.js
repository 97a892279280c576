'use strict'

// Metrics of this process: its event loop and its threads.

const { readFileSync } = require('node:fs')
const { monitorEventLoopDelay } = require('node:perf_hooks')
const { Gauge } = require('prom-client')

const QUANTILES = [0.5, 0.99]

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
  gauge({
    name: 'extism_event_loop_delay_seconds',
    help: 'How late the event loop runs timers, since the last scrape, by quantile; 1 is the maximum',
    labelNames: ['quantile'],
    collect () {
      // Without a sample, the histogram has no maximum.
      if (delays.count === 0) return
      for (const quantile of QUANTILES) this.set({ quantile }, delays.percentile(100 * quantile) / 1e9)
      this.set({ quantile: 1 }, delays.max / 1e9)
      delays.reset()
    }
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
