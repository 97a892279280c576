'use strict'

// The public API: validation, errors, and the Map-like face of the store. The work is done in
// Rust, on threads of its own; calls leave through `native.call` and come back through `settle`.

const { fileURLToPath } = require('node:url')
const { isAnyArrayBuffer, isSharedArrayBuffer } = require('node:util').types
const binding = require('./binding.js')

const DEFAULT_MAX_QUEUE = 10_000
const MAX_INSTANCES = 1_024
const MAX_U32 = 0xFFFF_FFFF

function codedError (code, message) {
  const error = code === 'INVALID_ARGUMENT' ? new TypeError(message) : new Error(message)
  error.code = code
  return error
}

function invalidArgument (message) {
  return codedError('INVALID_ARGUMENT', message)
}

/** Says what a value is, for messages, without quoting it: it may be long, or secret. */
function describe (value) {
  if (value === null || value === undefined) return String(value)
  if (typeof value === 'object') return `an instance of ${value.constructor?.name ?? 'Object'}`
  return `a ${typeof value}`
}

// Calls on their way: number → what settles its promise, and the plugin, which must not be collected
// meanwhile. What is not in here any more has been settled, whatever arrives for it later.
const waiting = new Map()
let lastCall = 0

function forget (number, call) {
  waiting.delete(number)
  call.signal?.removeEventListener('abort', call.abort)
  if (waiting.size === 0) completions.keepAlive(false)
}

const completions = new binding.Completions(function settle () {
  const items = completions.take()
  for (let i = 0; i < items.length; i += 3) {
    const call = waiting.get(items[i])
    if (call === undefined) continue
    forget(items[i], call)
    const code = items[i + 1]
    const payload = items[i + 2]
    if (code !== null) {
      call.reject(codedError(code, payload))
    } else {
      call.resolve(payload === null ? null : new PluginOutput(payload))
    }
  }
})

/**
 * Starts something of a native plugin that ends with a completion of the number that `start` is
 * given, or when `signal` is aborted, whichever is first.
 */
function complete (native, start, signal) {
  return new Promise((resolve, reject) => {
    const number = ++lastCall
    const call = { native, resolve, reject, signal, abort: undefined }
    if (signal !== undefined) {
      call.abort = () => {
        forget(number, call)
        native.cancel(number)
        reject(signal.reason)
      }
      signal.addEventListener('abort', call.abort, { once: true })
    }
    waiting.set(number, call)
    if (waiting.size === 1) completions.keepAlive(true)
    start(number)
  })
}

/** Bytes as a Uint8Array over unshared memory, or `undefined` for what is not bytes. */
function asBytes (value) {
  let bytes
  if (value instanceof Uint8Array) {
    bytes = value
  } else if (ArrayBuffer.isView(value)) {
    bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
  } else if (isAnyArrayBuffer(value)) {
    bytes = new Uint8Array(value)
  } else {
    return undefined
  }
  // Another thread could change shared memory while it is read.
  return isSharedArrayBuffer(bytes.buffer) ? new Uint8Array(bytes) : bytes
}

function asInput (input) {
  if (typeof input === 'string') return input
  if (input === undefined || input === null) return undefined
  const bytes = asBytes(input)
  if (bytes === undefined) {
    throw invalidArgument(
      `the input must be a string, bytes or undefined, not ${describe(input)}; turn numbers into strings and objects into JSON`
    )
  }
  return bytes
}

const decoder = new TextDecoder()

class PluginOutput extends DataView {
  text () {
    return decoder.decode(this)
  }

  string () {
    return this.text()
  }

  json () {
    return JSON.parse(this.text())
  }

  bytes () {
    return new Uint8Array(this.buffer, this.byteOffset, this.byteLength)
  }

  arrayBuffer () {
    return this.buffer
  }
}

for (const name of Object.getOwnPropertyNames(DataView.prototype)) {
  if (!name.startsWith('set')) continue
  Object.defineProperty(PluginOutput.prototype, name, {
    configurable: true,
    writable: true,
    value () {
      throw codedError('INVALID_ARGUMENT', `a PluginOutput is read-only: ${name} cannot be called`)
    }
  })
}

// Lets Plugin and MemoryStore reach what only this file may make or read.
const SECRET = Symbol('extism-host')

class Plugin {
  #native
  #closed

  constructor (secret, native) {
    if (secret !== SECRET) {
      throw invalidArgument('a Plugin is made by createPlugin()')
    }
    this.#native = native
  }

  // Not an async function: that would make a second promise around the one of `complete`.
  call (name, input, hostContext, options) {
    try {
      if (typeof name !== 'string') {
        throw invalidArgument(`the function's name must be a string, not ${describe(name)}`)
      }
      const bytes = asInput(input)
      if (options === undefined || options === null) {
        return complete(this.#native, (number) => this.#native.call(number, name, bytes))
      }
      const { signal, timeoutMs } = pick(options, CALL_KEYS, 'the options of a call')
      if (signal !== undefined) checkSignal(signal)
      const limit = asInteger(timeoutMs, 'timeoutMs', undefined, MAX_U32)
      if (signal?.aborted) throw signal.reason
      return complete(this.#native, (number) => this.#native.call(number, name, bytes, limit), signal)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  async functionExists (name) {
    if (this.#closed) throw codedError('CLOSED', 'the plugin is closed')
    return typeof name === 'string' && this.#native.functionExists(name)
  }

  close () {
    this.#closed ??= complete(this.#native, (number) => this.#native.close(number)).then(() => undefined)
    return this.#closed
  }

  async [Symbol.asyncDispose] () {
    await this.close()
  }
}

class MemoryStore {
  #native = new binding.MemoryStore()

  constructor (entries) {
    if (entries === undefined || entries === null) return
    if (typeof entries[Symbol.iterator] !== 'function' || typeof entries === 'string') {
      throw invalidArgument(`a MemoryStore takes an iterable of [key, value], not ${describe(entries)}`)
    }
    for (const entry of entries) {
      if (entry === null || typeof entry !== 'object') {
        throw invalidArgument(`each item for a MemoryStore must be [key, value], not ${describe(entry)}`)
      }
      this.set(entry[0], entry[1])
    }
  }

  /** The native store of a MemoryStore; `undefined` for anything else. */
  static [SECRET] (store) {
    return typeof store === 'object' && store !== null && #native in store ? store.#native : undefined
  }

  get size () {
    return this.#native.size
  }

  set (key, value) {
    checkKey(key)
    // UTF-8 has no lone surrogates: two such keys would become one, and a value would change.
    if (!key.isWellFormed()) {
      throw invalidArgument('a key must be well-formed Unicode, without lone surrogates')
    }
    if (typeof value === 'string') {
      if (!value.isWellFormed()) {
        throw invalidArgument('a string must be well-formed Unicode, without lone surrogates; store bytes instead')
      }
      this.#native.set(key, value)
    } else {
      const bytes = asBytes(value)
      if (bytes === undefined) {
        throw invalidArgument(`a value must be a string or bytes, not ${describe(value)}`)
      }
      this.#native.set(key, bytes)
    }
    return this
  }

  get (key) {
    checkKey(key)
    return this.#native.get(key) ?? undefined
  }

  has (key) {
    checkKey(key)
    return this.#native.has(key)
  }

  delete (key) {
    checkKey(key)
    return this.#native.delete(key)
  }

  clear () {
    this.#native.clear()
  }

  forEach (callback, thisArgument) {
    for (const [key, value] of this) callback.call(thisArgument, value, key, this)
  }

  * keys () {
    for (const [key] of this) yield key
  }

  * values () {
    for (const [, value] of this) yield value
  }

  * entries () {
    for (const key of this.#native.keys()) {
      const value = this.#native.get(key)
      // A key that was deleted since the iteration began is left out, as in a Map.
      if (value !== null) yield [key, value]
    }
  }

  [Symbol.iterator] () {
    return this.entries()
  }

  get [Symbol.toStringTag] () {
    return 'MemoryStore'
  }
}

function checkKey (key) {
  if (typeof key !== 'string') {
    throw invalidArgument(`a key must be a string, not ${describe(key)}`)
  }
}

const MANIFEST_KEYS = { config: 'config', timeoutMs: 'timeoutMs', timeout_ms: 'timeoutMs', memory: 'memory' }
const OPTION_KEYS = { ...MANIFEST_KEYS, useWasi: 'useWasi', store: 'store', instances: 'instances', maxQueue: 'maxQueue', maxOutputBytes: 'maxOutputBytes' }
const MEMORY_KEYS = { maxPages: 'maxPages', max_pages: 'maxPages', maxVarBytes: 'maxVarBytes', max_var_bytes: 'maxVarBytes' }
const CALL_KEYS = { signal: 'signal', timeoutMs: 'timeoutMs' }
const WASM_KEYS = { path: 'path', data: 'data', name: 'name', hash: 'hash' }

function isObject (value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !asBytes(value)
}

/** The known properties of an object under their camelCase names; anything else is an error. */
function pick (object, keys, what) {
  if (!isObject(object)) throw invalidArgument(`${what} must be an object, not ${describe(object)}`)
  const picked = {}
  for (const [key, value] of Object.entries(object)) {
    if (!Object.hasOwn(keys, key)) {
      throw invalidArgument(`${what} has no "${key}"; it takes ${Object.keys(keys).join(', ')}`)
    }
    if (value !== undefined && value !== null) picked[keys[key]] = value
  }
  return picked
}

function checkSignal (signal) {
  if (typeof signal?.aborted !== 'boolean' || typeof signal.addEventListener !== 'function' ||
    typeof signal.removeEventListener !== 'function') {
    throw invalidArgument(`signal must be an AbortSignal, not ${describe(signal)}`)
  }
}

function asPath (url) {
  try {
    return fileURLToPath(url)
  } catch (error) {
    throw invalidArgument(`a plugin's URL must be a file: URL of this machine (${error.message}); fetch others and pass the bytes`)
  }
}

function asManifest (source) {
  if (typeof source === 'string') {
    if (source === '') throw invalidArgument('the path of the plugin is empty')
    return { wasm: [{ path: /^(file|https?):/i.test(source) ? asPath(source) : source }] }
  }
  if (source instanceof URL) return { wasm: [{ path: asPath(source) }] }
  const data = asBytes(source)
  if (data !== undefined) return { wasm: [{ data }] }
  if (!isObject(source) || source.wasm === undefined) {
    throw invalidArgument(
      `a plugin's source must be a path, a file: URL, bytes, or a manifest {wasm: [{path | data}]}, not ${describe(source)}`
    )
  }
  return source
}

function asWasm (item, index) {
  const what = `wasm[${index}] of the manifest`
  const { path, data, name, hash } = pick(item, WASM_KEYS, what)
  if ((path === undefined) === (data === undefined)) {
    throw invalidArgument(`${what} must have a path or data, and not both`)
  }
  for (const [key, value] of Object.entries({ path, name, hash })) {
    if (value !== undefined && typeof value !== 'string') {
      throw invalidArgument(`"${key}" of ${what} must be a string, not ${describe(value)}`)
    }
    if (key === 'path' && value?.includes('\0')) throw invalidArgument(`"path" of ${what} has a NUL character`)
  }
  const bytes = data === undefined ? undefined : asBytes(data)
  if (data !== undefined && bytes === undefined) {
    throw invalidArgument(`"data" of ${what} must be bytes, not ${describe(data)}`)
  }
  return { path, data: bytes, name, hash }
}

function asInteger (value, name, fallback, most, least = 1) {
  if (value === undefined) return fallback
  if (!Number.isInteger(value) || value < least || value > most) {
    throw invalidArgument(`${name} must be a whole number from ${least} to ${most}`)
  }
  return value
}

function asConfig (config = {}) {
  if (!isObject(config)) throw invalidArgument(`config must be an object, not ${describe(config)}`)
  for (const [key, value] of Object.entries(config)) {
    if (typeof value !== 'string') {
      throw invalidArgument(`the value of "${key}" in config must be a string, not ${describe(value)}`)
    }
  }
  return { ...config }
}

async function createPlugin (source, options = {}) {
  const { wasm, ...rest } = asManifest(await source)
  if (!Array.isArray(wasm)) throw invalidArgument(`"wasm" of the manifest must be an array, not ${describe(wasm)}`)
  const merged = { ...pick(rest, MANIFEST_KEYS, 'the manifest'), ...pick(options ?? {}, OPTION_KEYS, 'options') }

  if (merged.useWasi !== undefined && typeof merged.useWasi !== 'boolean') {
    throw invalidArgument(`useWasi must be a boolean, not ${describe(merged.useWasi)}`)
  }
  const store = merged.store === undefined ? new binding.MemoryStore() : MemoryStore[SECRET](merged.store)
  if (store === undefined) {
    throw invalidArgument(`store must be a MemoryStore, not ${describe(merged.store)}`)
  }
  const memory = pick(merged.memory ?? {}, MEMORY_KEYS, 'memory')

  const opened = await binding.openPlugin({
    wasm: wasm.map(asWasm),
    config: asConfig(merged.config),
    timeoutMs: asInteger(merged.timeoutMs, 'timeoutMs', undefined, MAX_U32),
    maxPages: asInteger(memory.maxPages, 'memory.maxPages', undefined, 65_536),
    maxVarBytes: asInteger(memory.maxVarBytes, 'memory.maxVarBytes', undefined, MAX_U32, 0),
    maxOutputBytes: asInteger(merged.maxOutputBytes, 'maxOutputBytes', undefined, MAX_U32),
    useWasi: merged.useWasi ?? false,
    instances: asInteger(merged.instances, 'instances', 1, MAX_INSTANCES),
    maxQueue: asInteger(merged.maxQueue, 'maxQueue', DEFAULT_MAX_QUEUE, MAX_U32)
  }, store, completions)
  if (opened instanceof binding.Plugin) return new Plugin(SECRET, opened)
  throw codedError(opened.code, opened.message)
}

module.exports = { createPlugin, MemoryStore, Plugin, PluginOutput }
