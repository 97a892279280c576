'use strict'

// The class Plugin, createPlugin and precompile.

const { allowedPathsOf } = require('./allowed-paths.js')
const { asBytes } = require('./bytes.js')
const { caller, complete, completeSync, fillCache, isUnfinished, open } = require('./calls.js')
const { asInteger, checkSignal } = require('./checks.js')
const { within } = require('./deadline.js')
const { codedError, describe, invalidArgument, annotateCallError } = require('./errors.js')
const { AsyncResource, addPluginState, stateCleanup, removePluginState, noteReentrantCall } = require('./host-functions.js')
const { asLogger } = require('./logging.js')
const { isObject, pick } = require('./objects.js')
const { CALL_KEYS, CALL_SYNC_KEYS, CLOSE_KEYS, MAX_TIMER_MS, MAX_U32, pickOptions, pluginOptions } = require('./options.js')
const { typedExports } = require('./plugin-schema.js')
const { loadManifest } = require('./source.js')
const { channels, isCallTraced } = require('./tracing.js')

/** A message lists at most this many functions, and this many characters of each name. */
const MAX_NAMES_SHOWN = 20
const MAX_NAME_SHOWN = 80

/** Calls may run this long after the end of an `await using`. */
const DISPOSAL_MS = 10_000

/** The name of the method that measures a call. */
const TIMED_CALL = Symbol('timed call')

// Only `createPlugin` may construct a Plugin.
const SECRET = Symbol('extism-host')

function asInput (input) {
  if (typeof input === 'string') return input
  if (input === undefined || input === null) return undefined
  const bytes = asBytes(input)
  if (bytes === undefined) {
    throw invalidArgument(
      `the input must be a string, bytes or undefined, not ${describe(input)}; convert numbers to strings and objects to JSON`
    )
  }
  return bytes
}

/**
 * Throws if call options were passed as the host context, where their time limit or signal would be ignored. To pass a
 * context that looks like options, the caller passes a fourth argument, which may be `null`.
 */
function checkHostContext (hostContext, options, name) {
  if (hostContext === undefined || hostContext === null || options !== undefined) return
  if (hostContext.signal === undefined && hostContext.timeoutMs === undefined) return
  if (!isObject(hostContext) || !Object.keys(hostContext).every((key) => Object.hasOwn(CALL_KEYS, key))) return
  throw invalidArgument(`call options are the fourth argument, after the host context: call('${name}', input, hostContext, options); ` +
    'if this is the host context, pass null as the fourth argument')
}

class Plugin {
  #native
  #functions
  #start
  #pluginState
  #exports
  #version
  #closed

  constructor (secret, native, pluginState, encodings) {
    if (secret !== SECRET) {
      throw invalidArgument('Plugin cannot be constructed: use createPlugin()')
    }
    this.#native = native
    this.#functions = new Map(Object.entries(native.functions()))
    this.#start = caller(native)
    this.#pluginState = pluginState
    this.#version = pluginState.version = native.version()
    stateCleanup.register(this, pluginState)
    if (encodings !== undefined) {
      const missing = [...encodings.keys()].find((name) => !this.#functions.has(name))
      if (missing !== undefined) throw invalidArgument(`schema has the function "${missing}", which the plugin does not have${this.#listOfFunctions()}`)
      this.#exports = typedExports(this, encodings)
    }
  }

  get exports () {
    if (this.#exports === undefined) throw invalidArgument('exports needs the option schema; call() runs a function without it')
    return this.#exports
  }

  call (name, input, hostContext, options) {
    return this[TIMED_CALL](name, input, hostContext, options, undefined)
  }

  /**
   * Like `call`, and sets `queueMs` and `runMs` of `times`, if it is given, when the call ends. For the packages of this
   * repository. Not an async function, which would wrap the promise of `complete` in a second one.
   */
  [TIMED_CALL] (name, input, hostContext, options, times) {
    try {
      const exportNumber = this.#exportNumber(name)
      const bytes = asInput(input)
      checkHostContext(hostContext, options, name)
      if (options === undefined || options === null) {
        return this.#complete(name, exportNumber, bytes, 0, undefined, hostContext, undefined, times)
      }
      const { signal, timeoutMs, logger } = pick(options, CALL_KEYS, 'the options of a call')
      if (signal !== undefined) checkSignal(signal)
      const limit = asInteger(timeoutMs, 'timeoutMs', 0, MAX_U32)
      const ownLogger = logger === undefined ? undefined : asLogger(logger, this.#pluginState.level)
      if (signal?.aborted) return Promise.reject(signal.reason)
      return this.#complete(name, exportNumber, bytes, limit, signal, hostContext, ownLogger, times)
    } catch (error) {
      return Promise.reject(annotateCallError(error, this.#pluginState.name, name, this.call))
    }
  }

  #complete (name, exportNumber, bytes, limit, signal, hostContext, logger, times) {
    if (!isCallTraced()) return this.#run(name, exportNumber, bytes, limit, signal, hostContext, logger, times)
    const trace = Object.assign(times ?? {}, this.#traceMessage(name, bytes))
    return channels.call.tracePromise(() => this.#run(name, exportNumber, bytes, limit, signal, hostContext, logger, trace), trace)
  }

  /** The message about a call on the channel `extism-host:call`. */
  #traceMessage (name, bytes) {
    return {
      plugin: this.#pluginState.name,
      version: this.#version,
      function: name,
      inputBytes: bytes === undefined ? 0 : Buffer.byteLength(bytes),
      startTime: performance.timeOrigin + performance.now(),
      // A subscriber may set it before the call starts.
      traceparent: undefined
    }
  }

  #run (name, exportNumber, bytes, limit, signal, hostContext, logger, trace) {
    const start = (number) => this.#start(number, exportNumber, bytes, limit)
    const callState = this.#callState(hostContext, logger, false, trace)
    if (callState === undefined) return complete(this.#native, start, signal, undefined, name, this.#pluginState.name, trace)
    const endWait = noteReentrantCall(this.#pluginState)
    const promise = complete(this.#native, start, signal, callState, name, this.#pluginState.name, trace)
    if (endWait !== undefined) promise.then(endWait, endWait)
    return promise
  }

  /** Creates the state of a call for host functions and loggers, or `undefined` if it needs none. */
  #callState (hostContext, logger, isSync, trace) {
    const hasFunctions = this.#pluginState.bodies.length > 0
    if (!hasFunctions && logger === undefined) return undefined
    return {
      hostContext,
      logger,
      trace,
      isSync,
      // Host functions run in the asynchronous context of their call. callSync() waits in that context anyway, so it
      // needs no resource; and before version 24, Node aborts if a time limit of `node:vm` interrupts its scope. A snapshot of
      // AsyncLocalStorage would do the same, and takes 30 times as long.
      context: hasFunctions && !isSync ? new AsyncResource('EXTISM_HOST_CALL', { requireManualDestroy: true }) : undefined,
      // The error of a host function as `{ error }`, the running host function, and whether the call was aborted.
      thrown: undefined,
      running: undefined,
      hasEnded: false
    }
  }

  #exportNumber (name) {
    const number = this.#functions.get(name)
    if (number !== undefined) return number
    if (typeof name !== 'string') {
      throw invalidArgument(`the function's name must be a string, not ${describe(name)}`)
    }
    throw codedError('FUNCTION_NOT_FOUND', `Plugin error: function "${name}" does not exist${this.#listOfFunctions()}`)
  }

  #listOfFunctions () {
    const names = [...this.#functions.keys()].sort()
    if (names.length === 0) return '; the plugin exports no functions that can be called'
    const shown = names.slice(0, MAX_NAMES_SHOWN).map((one) => `"${one.slice(0, MAX_NAME_SHOWN)}"`).join(', ')
    return `; there ${names.length === 1 ? 'is' : 'are'} ${shown}${names.length > MAX_NAMES_SHOWN ? ` and ${names.length - MAX_NAMES_SHOWN} more` : ''}`
  }

  callSync (name, input, hostContext, options) {
    let start, ownLogger, trace
    try {
      const exportNumber = this.#exportNumber(name)
      const bytes = asInput(input)
      checkHostContext(hostContext, options, name)
      const { timeoutMs, logger } = pick(options ?? {}, CALL_SYNC_KEYS, 'the options of a synchronous call')
      const limit = asInteger(timeoutMs, 'timeoutMs', 0, MAX_U32)
      ownLogger = logger === undefined ? undefined : asLogger(logger, this.#pluginState.level)
      start = (number) => this.#start(number, exportNumber, bytes, limit)
      if (isCallTraced()) trace = this.#traceMessage(name, bytes)
    } catch (error) {
      throw annotateCallError(error, this.#pluginState.name, name, this.callSync)
    }
    const run = () => completeSync(this.#native, start, this.#callState(hostContext, ownLogger, true, trace), this.#pluginState, name, this.callSync, trace)
    return trace === undefined ? run() : channels.call.traceSync(run, trace)
  }

  stats () {
    const { succeeded, failed, queued, busy, instances, ready, made, waited, replaced, abandonedThreads, snapshot, memoryBytes, codeBytes, store } = this.#native.stats()
    return {
      calls: { succeeded, failed },
      queued,
      busy,
      instances,
      ready,
      made,
      waited,
      replaced,
      abandonedThreads,
      snapshot,
      version: this.#version,
      memoryBytes,
      codeBytes,
      store,
      connectors: this.#pluginState.connectorCalls.toObject()
    }
  }

  isActive () {
    return isUnfinished(this.#native)
  }

  async reset () {
    this.#checkOpen()
    // Running calls could set variables again.
    if (this.isActive()) return false
    this.#native.clearVars()
    this.#pluginState.resets++
    return true
  }

  async functionExists (name) {
    this.#checkOpen()
    return this.#functions.has(name)
  }

  async getExports () {
    this.#checkOpen()
    return this.#native.exports()
  }

  async getImports () {
    this.#checkOpen()
    return this.#native.imports()
  }

  async getInstance () {
    throw codedError('UNSUPPORTED', 'there is no WebAssembly.Instance, because the plugin runs outside of JavaScript; ' +
      'use call() to run its functions, and getExports() and getImports() to inspect it')
  }

  #checkOpen () {
    if (this.#closed) throw codedError('CLOSED', 'the plugin is closed')
  }

  close (options) {
    try {
      const { timeoutMs } = pick(options ?? {}, CLOSE_KEYS, 'the options of close')
      const milliseconds = asInteger(timeoutMs, 'timeoutMs', undefined, MAX_TIMER_MS, 0)
      // Keeps the native plugin alive, but does not count as a call in `isActive`.
      const kept = { native: this.#native }
      this.#closed ??= complete(kept, (number) => this.#native.close(number)).then(() => removePluginState(this.#pluginState))
      if (milliseconds !== undefined) {
        const timer = setTimeout(() => this.#native.endCalls(), milliseconds)
        this.#closed.then(() => clearTimeout(timer))
      }
      return this.#closed
    } catch (error) {
      return Promise.reject(error)
    }
  }

  async [Symbol.asyncDispose] () {
    await this.close({ timeoutMs: DISPOSAL_MS })
  }
}

/**
 * Loads the manifest, and passes the plugin's options to `work`, with a signal that is aborted with the options'
 * signal or after `openTimeoutMs`. On abort it rejects at once, even if `work` is still pending.
 */
async function load (source, options, work) {
  const sourceOrPromise = Promise.resolve(source)
  // If the options are invalid, nobody awaits the source: its rejection must not be unhandled.
  sourceOrPromise.catch(() => {})
  const picked = pickOptions(options)
  const { signal, openTimeoutMs: milliseconds } = picked
  const timeout = () => codedError('TIMEOUT', `the plugin was not opened within ${milliseconds} ms (openTimeoutMs)`)
  return within({ signal, milliseconds, timeout }, async (ending) => {
    const manifest = await loadManifest(await sourceOrPromise, picked.fetch, ending)
    ending.throwIfAborted()
    return work(pluginOptions(manifest, picked), ending)
  })
}

function createPlugin (source, options) {
  return load(source, options, openPlugin)
}

async function openPlugin ({ native, store, inJavaScript, ...rest }, signal) {
  const allowedPaths = await allowedPathsOf(rest.allowedPaths, native.useWasi)
  signal.throwIfAborted()
  const pluginState = addPluginState(inJavaScript)
  try {
    const opened = await open({ ...native, allowedPaths, pluginId: pluginState.pluginId }, store, signal)
    try {
      return new Plugin(SECRET, opened, pluginState, inJavaScript.encodings)
    } catch (error) {
      await complete(undefined, (number) => opened.close(number))
      throw error
    }
  } catch (error) {
    removePluginState(pluginState, error)
    if (error.code === 'HOST_FUNCTION_ERROR' && pluginState.thrown !== undefined) throw pluginState.thrown.error
    throw error
  }
}

function precompile (source, options) {
  return load(source, options, async ({ native }, signal) => {
    if (native.compileCache === undefined && native.runtime !== 'extism') {
      if (options?.compileCache === false) throw invalidArgument('compileCache must not be false: precompile fills the compile cache')
      throw codedError('CACHE_UNAVAILABLE', 'EXTISM_HOST_CACHE_DIR turns the compile cache off; set it to a directory, or pass compileCache: true')
    }
    await fillCache({ ...native, allowedPaths: [], pluginId: 0 }, signal)
  })
}

module.exports = { Plugin, TIMED_CALL, createPlugin, precompile }
