'use strict'

// The plugin that somebody writes: its newest version that works, and a report of each call.

const { AsyncLocalStorage } = require('node:async_hooks')
const { channel, tracingChannel } = require('node:diagnostics_channel')
const { EventEmitter } = require('node:events')
const { statSync } = require('node:fs')
const { basename, resolve } = require('node:path')
const { createPlugin } = require('extism-host')
const { LEVELS, codedError } = require('extism-host/internal')
const { loadFunctions } = require('../functions.js')
const { START_FUNCTIONS } = require('../inspect.js')
const { filesOf } = require('../live-configuration.js')
const { isManifest, optionsOf, permissionsOf, sourceOf } = require('../plugin-flags.js')
const { UsageError } = require('../usage-error.js')
const { filesIn } = require('./files.js')

/** The characters to show of an argument or a result of a host function. */
const MAX_VALUE = 200

const MAX_LOGS = 1_000
const MAX_HOST_CALLS = 1_000

const rounded = (milliseconds) => Math.round(milliseconds * 100) / 100
const since = (start) => rounded(performance.now() - start)
const changedMs = (file) => file && statSync(file, { throwIfNoEntry: false })?.ctimeMs

/** The module that was written last in a directory. Cargo keeps a copy of each in `deps`. */
async function newestModule (directory) {
  let newest
  for await (const file of filesIn(directory, ['node_modules', 'deps'])) {
    if (file.endsWith('.wasm') && !(changedMs(newest) > changedMs(file))) newest = file
  }
  if (newest === undefined) throw new UsageError(`there is no .wasm file in ${directory}; pass the command that builds one as --build`)
  return newest
}

/** Describes an argument or a result of a host function: its number, and the text if it is a block's offset. */
function describeValue (context, value) {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, MAX_VALUE))
  if (value instanceof Uint8Array) return `${value.length} bytes`
  const block = typeof value === 'bigint' ? context.read(value) : null
  return block === null ? String(value) : JSON.stringify(block.text().slice(0, MAX_VALUE))
}

/** Adds a call of a host function to the report of the guest's call. An initialization has none. */
function record (report, hostCall) {
  if (report !== undefined && report.hostCalls.length < MAX_HOST_CALLS) report.hostCalls.push(hostCall)
}

/** Adds the operations on stores and the HTTP requests of guests, which no function in JavaScript sees, to the reports of their calls. */
function recordOperations (reports) {
  const reportOf = new WeakMap()
  tracingChannel('extism-host:call').subscribe({ start: (call) => reportOf.set(call, reports.getStore()) })
  channel('extism-host:store').subscribe(({ call, function: name, system, startTime, durationMs, error }) =>
    record(reportOf.get(call), { name, startTime, args: [`store: ${system}`], result: '', durationMs: rounded(durationMs), error }))
  channel('extism-host:http').subscribe(({ call, method, url, status, startTime, durationMs, error }) =>
    record(reportOf.get(call), { name: 'http_request', startTime, args: [`${method} ${url}`], result: String(status), durationMs: rounded(durationMs), error }))
}

function describeError (error) {
  const { code, message = String(error), docs, returnCode, wasmBacktrace = [], stack } = error ?? {}
  // Errors of the developer's own host functions have a stack that says more than ours.
  return { code, message, docs, returnCode, backtrace: wasmBacktrace, stack: docs === undefined ? stack : undefined }
}

/**
 * Emits `state` after each change of `state`, `loaded` and `refused` after a version was opened or could not be,
 * `log` for each message of a guest, and `call` with the report of each call.
 */
class DevPlugin extends EventEmitter {
  #location
  #flags
  #store
  #plugin
  #lastLoad = Promise.resolve()
  /** The files of the last load with the times of their changes. */
  #stamp
  #reports = new AsyncLocalStorage()
  files = []

  constructor (location, flags, store) {
    super()
    // Each open page listens.
    this.setMaxListeners(0)
    this.#location = location
    this.#flags = flags
    this.#store = store
    recordOperations(this.#reports)
    this.state = { name: basename(resolve(location)), version: 0, functions: [], build: {}, failure: undefined }
  }

  #setState (change) {
    this.state = { ...this.state, ...change }
    this.emit('state')
  }

  /** Records the state of the build: `isRunning`, and the `reason` and `output` of a failure. */
  setBuild (build) {
    this.#setState({ build })
  }

  /** Opens a new version if one of its files has changed. If it cannot be opened, the old version keeps serving. */
  load () {
    this.#lastLoad = this.#lastLoad.then(() => this.#load())
    return this.#lastLoad
  }

  async #load () {
    try {
      const location = statSync(this.#location, { throwIfNoEntry: false })?.isDirectory() ? await newestModule(this.#location) : this.#location
      const manifests = isManifest(location, this.#flags) ? [resolve(location)] : []
      // If the first manifest has a mistake, its correction loads it.
      if (this.files.length === 0) this.files = manifests
      const source = sourceOf(location, this.#flags)
      const { functions } = this.#flags
      this.files = [...filesOf({ source, functions }).map((file) => resolve(file)), ...manifests]
      const stamp = JSON.stringify(this.files.map((file) => [file, changedMs(file)]))
      if (stamp === this.#stamp) return
      this.#stamp = stamp
      await this.#open(basename(location), source, functions)
    } catch (error) {
      const failure = describeError(error)
      this.#setState({ failure })
      this.emit('refused', failure)
    }
  }

  async #open (name, source, functions) {
    const plugin = await createPlugin(source, {
      logLevel: 'trace',
      ...optionsOf(source, this.#flags),
      functions: functions && this.#observed(await loadFunctions(functions)),
      enableWasiOutput: this.#flags.wasi && 'logger',
      logger: this.#logger(),
      store: this.#store && { store: this.#store, ...permissionsOf(this.#flags) }
    })
    const functionNames = []
    for (const { name, kind } of await plugin.getExports()) {
      if (kind === 'function' && !START_FUNCTIONS.has(name) && await plugin.functionExists(name)) functionNames.push(name)
    }
    const before = this.#plugin
    this.#plugin = plugin
    this.#setState({ name, version: this.state.version + 1, functions: functionNames, failure: undefined })
    this.emit('loaded', this.state)
    before?.close()
  }

  /** A logger whose messages also go into the report of a call. */
  #logger (report) {
    return Object.fromEntries(LEVELS.map((level) => [level, (message) => {
      if (report !== undefined && report.logs.length < MAX_LOGS) report.logs.push({ level, message })
      this.emit('log', { level, message })
    }]))
  }

  /** Host functions that also record their calls. */
  #observed (namespaces) {
    const map = (object, convert) => Object.fromEntries(Object.entries(object).map(([name, value]) => [name, convert(name, value)]))
    return map(namespaces, (namespace, functions) => map(functions, (name, run) => this.#observe(`${namespace} ${name}`, run)))
  }

  #observe (name, run) {
    if (typeof run !== 'function') return run
    return (context, ...args) => {
      const start = performance.now()
      const call = { name, startTime: performance.timeOrigin + start, args: args.map((arg) => describeValue(context, arg)) }
      record(this.#reports.getStore(), call)
      const returned = (value) => {
        Object.assign(call, { durationMs: since(start), result: value === undefined ? '' : describeValue(context, value) })
        return value
      }
      const threw = (error) => {
        Object.assign(call, { durationMs: since(start), error: String(error?.message ?? error) })
        throw error
      }
      try {
        const value = run(context, ...args)
        return typeof value?.then === 'function' ? value.then(returned, threw) : returned(value)
      } catch (error) {
        return threw(error)
      }
    }
  }

  /**
   * Calls a function. Resolves to the output, which is undefined after a failure, and a report of what happened.
   * `hostContext` and `signal` are those of `plugin.call`.
   */
  async call (functionName, input, hostContext, signal) {
    const report = { function: functionName, version: this.state.version, logs: [], hostCalls: [] }
    const plugin = this.#plugin
    const start = performance.now()
    let output
    try {
      if (plugin === undefined) throw codedError('UNAVAILABLE', 'no version of the plugin is loaded yet')
      const options = { signal, logger: this.#logger(report) }
      const result = await this.#reports.run(report, () => plugin.call(functionName, input, hostContext, options))
      output = result === null ? new Uint8Array() : result.bytes()
      report.outputBytes = output.length
    } catch (error) {
      report.error = describeError(error)
    }
    report.durationMs = since(start)
    report.memoryBytes = plugin?.stats().memoryBytes
    report.hostCalls.sort((a, b) => a.startTime - b.startTime)
    this.emit('call', report)
    return { output, report }
  }

  async close () {
    await this.#lastLoad
    await this.#plugin?.close({ timeoutMs: 0 })
  }
}

module.exports = { DevPlugin }
