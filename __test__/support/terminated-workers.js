'use strict'

// Terminates worker threads at random moments while they use plugins and stores, and prints as JSON what
// the process had before, and has after, once it has settled. Arguments: how many workers, the seed.

const { mkdtempSync, readdirSync, readFileSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { Worker } = require('node:worker_threads')
const { guest } = require('./guest.js')
const { randomNumbers } = require('./random.js')

const WARM_UP = 10
const AT_ONCE = 4
const MAX_MILLISECONDS = 150
/** How long idle threads of stores stay. */
const IDLE_THREAD_MILLISECONDS = 12_000
/** How long what a dead worker owned may take to end. */
const SETTLE_MILLISECONDS = 30_000
/** Wasmtime keeps up to 100 places of its pool warm that nobody uses: two mappings each, memories and tables. */
const CLOSE_TO = { threads: 2, mappings: 400, descriptors: 2, megabytes: 48 }

// What `PRELUDE` gives the workers.
/* global createPlugin, openStore, watch, many, asking, file */

/** What a worker does until it is terminated. */
const SCENARIOS = {
  async open () {
    for (;;) await createPlugin(many, { instances: 3, eager: true, compileCache: false })
  },

  async run () {
    const plugin = await createPlugin(many, { instances: 2 })
    for (let i = 0; i < 20; i++) plugin.call(i % 3 === 0 ? 'loop_for_ever' : 'echo', Buffer.alloc(100_000))
    for (;;) await plugin.call('echo', 'x')
  },

  async callHost () {
    const ask = () => new Promise((resolve) => setTimeout(resolve, 1e6))
    const functions = { 'extism:host/user': { ask }, numbers: { mix () {}, i32 () {}, f32 () {}, nothing () {} } }
    const plugin = await createPlugin(asking, { instances: 2, eager: true, functions })
    for (let i = 0; i < 4; i++) plugin.call('ask')
  },

  /** The event loop stands still, and the worker is terminated all the same. */
  async callSync () {
    const plugin = await createPlugin(many, { timeoutMs: 400 })
    for (;;) {
      try { plugin.callSync('loop_for_ever') } catch {}
    }
  },

  async store () {
    const store = await openStore('redb:' + file)
    watch(store)
    for (let i = 0; ; i++) await store.set('key:' + i % 50, Buffer.alloc(1_000))
  },

  async pluginWithStore () {
    const store = await openStore('memory:')
    watch(store)
    const plugin = await createPlugin(many, { store, instances: 2 })
    for (;;) await Promise.all([store.set('key', 'x'), plugin.call('echo', 'x')])
  }
}

const PRELUDE = `
  const { workerData: { library, many, asking, file } } = require('node:worker_threads')
  const { createPlugin, openStore } = require(library)
  async function watch (store) {
    for await (const change of store.watch('key')) void change
  }`

const sourceOf = (name) => `${PRELUDE}\nconst scenarios = {${Object.values(SCENARIOS).join(',')}}\nscenarios.${name}()`

function measure () {
  return {
    threads: readdirSync('/proc/self/task').length,
    mappings: readFileSync('/proc/self/maps', 'utf8').split('\n').length,
    descriptors: readdirSync('/proc/self/fd').length,
    megabytes: process.memoryUsage.rss() >> 20
  }
}

const isCloseTo = (now, before) => Object.entries(CLOSE_TO).every(([name, more]) => now[name] <= before[name] + more)

async function main (count, seed) {
  const random = randomNumbers(seed)
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-workers-'))
  const library = join(__dirname, '../..')
  // The main thread has the library too: it must not suffer.
  const { createPlugin } = require(library)
  const [many, asking] = [await guest('many'), await guest('asking')]
  const plugin = await createPlugin(many)
  const names = Object.keys(SCENARIOS)

  async function terminateOne (number) {
    const name = names[number % names.length]
    const file = join(directory, `${number % 5}.redb`)
    const worker = new Worker(sourceOf(name), { eval: true, workerData: { library, many, asking, file } })
    const failed = new Promise((resolve, reject) => worker.once('error', (error) => {
      error.message = `${name}: ${error.message}`
      reject(error)
    }))
    failed.catch(() => {})
    await Promise.race([failed, new Promise((resolve) => worker.once('online', resolve))])
    await Promise.race([failed, sleep(random() * MAX_MILLISECONDS)])
    await Promise.race([failed, worker.terminate()])
  }

  async function terminate (count) {
    let next = 0
    const one = async () => {
      while (next < count) await terminateOne(next++)
    }
    await Promise.all(Array.from({ length: AT_ONCE }, one))
  }

  async function settled (isEnough) {
    const until = performance.now() + SETTLE_MILLISECONDS
    while (!isEnough(measure()) && performance.now() < until) await sleep(100)
    return measure()
  }

  await terminate(WARM_UP)
  await sleep(IDLE_THREAD_MILLISECONDS)
  const before = measure()
  await terminate(count)
  const after = await settled((now) => isCloseTo(now, before))
  const output = await plugin.call('echo', 'still here')
  await plugin.close()
  rmSync(directory, { recursive: true, force: true })
  console.log(JSON.stringify({ before, after, isSettled: isCloseTo(after, before), output: output.text() }))
}

main(Number(process.argv[2]), Number(process.argv[3]))
