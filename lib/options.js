'use strict'

// Manifests and options as the native part takes them, or an error that says what is wrong.

const { resolve } = require('node:path')
const { fileURLToPath } = require('node:url')
const binding = require('../binding.js')
const { asBytes } = require('./bytes.js')
const { asInteger } = require('./checks.js')
const { describe, invalidArgument } = require('./errors.js')
const { asFunctions } = require('./host-functions.js')
const { asLevel, asLogger } = require('./logging.js')
const { isObject, pick } = require('./objects.js')
const { nativeStore } = require('./store.js')

const DEFAULT_MAX_QUEUE = 10_000
const MAX_INSTANCES = 1_024
const MAX_U32 = 0xFFFF_FFFF

const MANIFEST_KEYS = { config: 'config', timeoutMs: 'timeoutMs', timeout_ms: 'timeoutMs', memory: 'memory' }
const OPTION_KEYS = {
  ...MANIFEST_KEYS,
  useWasi: 'useWasi',
  store: 'store',
  instances: 'instances',
  eager: 'eager',
  maxQueue: 'maxQueue',
  maxOutputBytes: 'maxOutputBytes',
  isolation: 'isolation',
  fuel: 'fuel',
  functions: 'functions',
  logger: 'logger',
  logLevel: 'logLevel',
  compileCache: 'compileCache'
}
const MEMORY_KEYS = { maxPages: 'maxPages', max_pages: 'maxPages', maxVarBytes: 'maxVarBytes', max_var_bytes: 'maxVarBytes' }
const CACHE_KEYS = { directory: 'directory', maxBytes: 'maxBytes' }
const CALL_KEYS = { signal: 'signal', timeoutMs: 'timeoutMs', logger: 'logger' }
const CALL_SYNC_KEYS = { timeoutMs: 'timeoutMs', logger: 'logger' }
const WASM_KEYS = { path: 'path', data: 'data', name: 'name', hash: 'hash' }

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

function asBoolean (value, name) {
  if (value === undefined) return false
  if (typeof value !== 'boolean') throw invalidArgument(`${name} must be a boolean, not ${describe(value)}`)
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

function asIsolation (isolation = 'instance') {
  if (isolation !== 'instance' && isolation !== 'call') {
    throw invalidArgument('isolation must be "instance" or "call"')
  }
  return isolation
}

/**
 * Where compiled modules are kept; `undefined` is nowhere. What the option leaves open the environment
 * says. It is read here and not in Rust, where another thread may be changing it at that moment.
 */
function asCompileCache (option) {
  const variable = process.env.EXTISM_HOST_CACHE_DIR
  const isOff = variable === '' || variable === 'off'
  if (option === false || (option === undefined && isOff)) return undefined
  if (option !== undefined && option !== true && !isObject(option)) {
    throw invalidArgument(`compileCache must be a boolean or an object, not ${describe(option)}`)
  }
  const {
    directory = isOff ? undefined : variable, maxBytes
  } = pick(isObject(option) ? option : {}, CACHE_KEYS, 'compileCache')
  if (directory !== undefined && (typeof directory !== 'string' || directory === '' || directory.includes('\0'))) {
    throw invalidArgument('compileCache.directory must be the path of a directory')
  }
  return {
    directory: directory === undefined ? undefined : resolve(directory),
    maxBytes: asInteger(maxBytes, 'compileCache.maxBytes', undefined, Number.MAX_SAFE_INTEGER)
  }
}

/** The native options of a plugin, its store, and what it has of JavaScript besides. */
function pluginOptions (source, options) {
  const { wasm, ...rest } = asManifest(source)
  if (!Array.isArray(wasm)) throw invalidArgument(`"wasm" of the manifest must be an array, not ${describe(wasm)}`)
  const merged = { ...pick(rest, MANIFEST_KEYS, 'the manifest'), ...pick(options ?? {}, OPTION_KEYS, 'options') }

  const store = merged.store === undefined ? new binding.MemoryStore() : nativeStore(merged.store)
  if (store === undefined) {
    throw invalidArgument(`store must be a MemoryStore or a Store, not ${describe(merged.store)}`)
  }
  const { names, bodies } = asFunctions(merged.functions)
  const level = asLevel(merged.logLevel)
  const logger = asLogger(merged.logger, level)
  const memory = pick(merged.memory ?? {}, MEMORY_KEYS, 'memory')

  const native = {
    wasm: wasm.map(asWasm),
    config: asConfig(merged.config),
    timeoutMs: asInteger(merged.timeoutMs, 'timeoutMs', undefined, MAX_U32),
    maxPages: asInteger(memory.maxPages, 'memory.maxPages', undefined, 65_536),
    maxVarBytes: asInteger(memory.maxVarBytes, 'memory.maxVarBytes', undefined, MAX_U32, 0),
    maxOutputBytes: asInteger(merged.maxOutputBytes, 'maxOutputBytes', undefined, MAX_U32),
    fuel: asInteger(merged.fuel, 'fuel', undefined, Number.MAX_SAFE_INTEGER),
    isIsolated: asIsolation(merged.isolation) === 'call',
    useWasi: asBoolean(merged.useWasi, 'useWasi'),
    compileCache: asCompileCache(merged.compileCache),
    instances: asInteger(merged.instances, 'instances', 1, MAX_INSTANCES),
    eager: asBoolean(merged.eager, 'eager'),
    maxQueue: asInteger(merged.maxQueue, 'maxQueue', DEFAULT_MAX_QUEUE, MAX_U32),
    functions: names,
    logLevel: level
  }
  return { native, store, inJavaScript: { bodies, logger, level, instances: native.instances } }
}

module.exports = { MAX_U32, CALL_KEYS, CALL_SYNC_KEYS, pluginOptions }
