'use strict'

// Checks manifests and options, and converts them for the native addon.

const { basename, resolve } = require('node:path')
const binding = require('../binding.js')
const { asBoolean, asInteger, asOneOf, checkSignal } = require('./checks.js')
const { describe, invalidArgument } = require('./errors.js')
const { parseFunctions } = require('./host-functions.js')
const { asLevel, asLogger } = require('./logging.js')
const { inBothSpellings, isObject, pick } = require('./objects.js')
const { asEncodings } = require('./plugin-schema.js')
const { nativeStore } = require('./store.js')

const DEFAULT_MAX_QUEUE = 10_000
/** 64 MiB: 6.7 kB for each call of a full default queue, and affordable on a small machine. */
const DEFAULT_MAX_QUEUE_BYTES = 2 ** 26
const MAX_INSTANCES = 1_024
const MAX_U32 = 0xFFFF_FFFF
/** The longest delay of `setTimeout`. */
const MAX_TIMER_MS = 2 ** 31 - 1

// The known properties of manifests and options.
const MANIFEST_KEYS = inBothSpellings('config', 'timeoutMs', 'memory', 'allowedHosts', 'allowedPaths')
const OPTION_KEYS = {
  ...MANIFEST_KEYS,
  name: 'name',
  useWasi: 'useWasi',
  wasi: 'wasi',
  enableWasiOutput: 'enableWasiOutput',
  store: 'store',
  instances: 'instances',
  eager: 'eager',
  maxQueue: 'maxQueue',
  maxQueueBytes: 'maxQueueBytes',
  maxOutputBytes: 'maxOutputBytes',
  allowHttpResponseHeaders: 'allowHttpResponseHeaders',
  isolation: 'isolation',
  snapshot: 'snapshot',
  maxCalls: 'maxCalls',
  maxAgeMs: 'maxAgeMs',
  fuel: 'fuel',
  interruption: 'interruption',
  runtime: 'runtime',
  functions: 'functions',
  schema: 'schema',
  logger: 'logger',
  logLevel: 'logLevel',
  compileCache: 'compileCache',
  fetch: 'fetch',
  signal: 'signal',
  openTimeoutMs: 'openTimeoutMs',
  runInWorker: 'runInWorker',
  sharedArrayBufferSize: 'sharedArrayBufferSize',
  nodeWorkerArgs: 'nodeWorkerArgs'
}
const MEMORY_KEYS = inBothSpellings('maxPages', 'maxVarBytes', 'maxHttpResponseBytes')
const STORE_KEYS = {
  store: 'store', prefix: 'prefix', access: 'access', maxValueBytes: 'maxValueBytes', maxKeys: 'maxKeys'
}
const WASI_KEYS = { args: 'args', env: 'env' }
const MAX_PREFIX_BYTES = 1_024
const MAX_WASI_BYTES = 65_536
const CACHE_KEYS = { directory: 'directory', maxBytes: 'maxBytes' }
const CALL_KEYS = { signal: 'signal', timeoutMs: 'timeoutMs', logger: 'logger' }
const CLOSE_KEYS = { timeoutMs: 'timeoutMs' }
const CALL_SYNC_KEYS = { timeoutMs: 'timeoutMs', logger: 'logger' }

function asConfig (config = {}) {
  if (!isObject(config)) throw invalidArgument(`config must be an object, not ${describe(config)}`)
  for (const [key, value] of Object.entries(config)) {
    if (typeof value !== 'string') {
      throw invalidArgument(`the value of "${key}" in config must be a string, not ${describe(value)}`)
    }
  }
  return { ...config }
}

/** Checks only the types; Rust checks the patterns. */
function asAllowedHosts (hosts = []) {
  if (!Array.isArray(hosts) || !hosts.every((host) => typeof host === 'string')) {
    throw invalidArgument('allowedHosts must be an array of host names, such as ["api.example.com", "*.example.org"]')
  }
  return [...hosts]
}

function isWasiString (value) {
  return typeof value === 'string' && !value.includes('\0') && value.isWellFormed()
}

/** Checks the arguments and the environment of a WASI guest. */
function asWasi (wasi = {}) {
  const { args = [], env = {} } = pick(wasi, WASI_KEYS, 'wasi')
  if (!Array.isArray(args) || !args.every(isWasiString)) {
    throw invalidArgument('wasi.args must be an array of strings without NUL characters')
  }
  if (!isObject(env) || !Object.entries(env).every(([name, value]) =>
    name !== '' && !name.includes('=') && isWasiString(name) && isWasiString(value))) {
    throw invalidArgument('wasi.env must be an object of strings without NUL characters; names must not be empty or contain "="')
  }
  const bytes = [...args, ...Object.entries(env).flat()].reduce((sum, text) => sum + Buffer.byteLength(text) + 1, 0)
  if (bytes > MAX_WASI_BYTES) throw invalidArgument(`wasi.args and wasi.env have ${bytes} bytes; ${MAX_WASI_BYTES} are allowed`)
  return { arguments: [...args], environment: { ...env } }
}

/** Checks the option `store`. Returns the native store and the permissions of guests. */
function asStoreOption (option = { access: 'read' }) {
  const isStore = nativeStore(option) !== undefined
  // An object without properties, such as a Map, is a mistake.
  if (!isStore && (!isObject(option) || Object.keys(option).length === 0)) {
    throw invalidArgument(`store must be a MemoryStore, a Store, or { store, prefix, access, … }, not ${describe(option)}`)
  }
  const {
    store = new binding.MemoryStore(), prefix = '', access = 'read', maxValueBytes, maxKeys
  } = isStore ? { __proto__: null, store: nativeStore(option) } : pickStore(option)
  if (typeof prefix !== 'string' || !prefix.isWellFormed() || Buffer.byteLength(prefix) > MAX_PREFIX_BYTES) {
    throw invalidArgument(`store.prefix must be a string of up to ${MAX_PREFIX_BYTES} bytes of UTF-8`)
  }
  return {
    store,
    permissions: {
      prefix,
      canWrite: asOneOf(access, ['read', 'write'], 'store.access') === 'write',
      maxValueBytes: asInteger(maxValueBytes, 'store.maxValueBytes', undefined, MAX_U32),
      maxKeys: asInteger(maxKeys, 'store.maxKeys', undefined, Number.MAX_SAFE_INTEGER)
    }
  }
}

/** Picks the properties of a StoreAccess, with its native store if it names one. */
function pickStore (option) {
  const picked = pick(option, STORE_KEYS, 'store')
  if (picked.store === undefined) return picked
  const { store, ...rest } = picked
  const native = nativeStore(store)
  if (native === undefined) throw invalidArgument(`store.store must be a MemoryStore or a Store, not ${describe(store)}`)
  return { __proto__: null, store: native, ...rest }
}

/** The destination of a guest's standard output. As in the JavaScript SDK, an environment variable sets the default. */
function asOutput (enableWasiOutput = Boolean(process.env.EXTISM_ENABLE_WASI_OUTPUT)) {
  if (enableWasiOutput === 'logger') return 'logger'
  if (typeof enableWasiOutput !== 'boolean') throw invalidArgument('enableWasiOutput must be a boolean or "logger"')
  return enableWasiOutput ? 'process' : undefined
}

/**
 * The directory of compiled modules, or `undefined` for no cache. The environment variable applies if the option does
 * not decide. It is read here and not in Rust, where another thread may be changing the environment.
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

/** Checks the option `fetch`, which loads plugins from the network; guests' requests do not use it. */
function checkFetch (fetch, allowedHosts) {
  if (fetch === undefined) return
  if (typeof fetch !== 'function') throw invalidArgument(`fetch must be a function, not ${describe(fetch)}`)
  if (fetch !== globalThis.fetch && allowedHosts?.length > 0) {
    throw invalidArgument('fetch and allowedHosts cannot be combined: plugins\' own requests are made natively and would bypass fetch. ' +
      'Omit one of them, or load the plugin yourself and pass its bytes')
  }
}

/** Checks options of the JavaScript SDK that have no effect here, because plugins always run on threads. */
function checkWorkerOptions ({ runInWorker, sharedArrayBufferSize, nodeWorkerArgs }) {
  asBoolean(runInWorker, 'runInWorker')
  asInteger(sharedArrayBufferSize, 'sharedArrayBufferSize', undefined, Number.MAX_SAFE_INTEGER)
  if (nodeWorkerArgs === undefined) return
  if (!isObject(nodeWorkerArgs)) throw invalidArgument(`nodeWorkerArgs must be an object, not ${describe(nodeWorkerArgs)}`)
  if (nodeWorkerArgs.resourceLimits !== undefined && nodeWorkerArgs.resourceLimits !== null) {
    throw invalidArgument('nodeWorkerArgs.resourceLimits has no effect, because there is no worker; use memory.maxPages')
  }
}

/** The plugin's name in errors: the option, or the name or file of its main module. */
function asName (name, wasm) {
  if (name !== undefined) {
    if (typeof name !== 'string' || name === '') throw invalidArgument('name must be a non-empty string')
    return name
  }
  const main = wasm.find((module) => module.name === binding.MAIN_MODULE) ?? wasm.at(-1)
  return main?.name ?? (main?.path === undefined ? binding.MAIN_MODULE : basename(main.path, '.wasm'))
}

/** Checks the options that matter before the manifest is loaded, and returns all under their camelCase names. */
function pickOptions (options) {
  const picked = pick(options ?? {}, OPTION_KEYS, 'options')
  checkWorkerOptions(picked)
  checkFetch(picked.fetch, undefined)
  if (picked.signal !== undefined) checkSignal(picked.signal)
  asInteger(picked.openTimeoutMs, 'openTimeoutMs', undefined, MAX_TIMER_MS)
  return picked
}

/**
 * Merges a loaded manifest with picked options. Returns the native options, the store, the unchecked `allowedPaths`,
 * and the state for JavaScript.
 */
function pluginOptions ({ wasm, ...rest }, options) {
  const manifest = pick(rest, MANIFEST_KEYS, 'the manifest')
  const merged = { __proto__: null, ...manifest, ...options }
  checkFetch(merged.fetch, merged.allowedHosts)

  const name = asName(merged.name, wasm)
  const runtime = asOneOf(merged.runtime ?? 'wasmtime', ['wasmtime', 'extism'], 'runtime')
  const { store, permissions } = asStoreOption(merged.store)
  const { names, bodies } = parseFunctions(merged.functions)
  const level = asLevel(merged.logLevel)
  const logger = asLogger(merged.logger, level)
  const memory = {
    __proto__: null,
    ...pick(manifest.memory ?? {}, MEMORY_KEYS, 'memory of the manifest'),
    ...pick(options.memory ?? {}, MEMORY_KEYS, 'memory')
  }

  const native = {
    wasm,
    config: asConfig(merged.config),
    timeoutMs: asInteger(merged.timeoutMs, 'timeoutMs', undefined, MAX_U32),
    maxPages: asInteger(memory.maxPages, 'memory.maxPages', undefined, 65_536),
    maxVarBytes: asInteger(memory.maxVarBytes, 'memory.maxVarBytes', undefined, MAX_U32, 0),
    allowedHosts: asAllowedHosts(merged.allowedHosts),
    maxHttpResponseBytes: asInteger(memory.maxHttpResponseBytes, 'memory.maxHttpResponseBytes', undefined, MAX_U32),
    allowHttpResponseHeaders: asBoolean(merged.allowHttpResponseHeaders, 'allowHttpResponseHeaders'),
    // Read here for the same reason as the variable of the cache.
    extraCertificates: process.env.NODE_EXTRA_CA_CERTS || undefined,
    maxOutputBytes: asInteger(merged.maxOutputBytes, 'maxOutputBytes', undefined, MAX_U32),
    fuel: asInteger(merged.fuel, 'fuel', undefined, Number.MAX_SAFE_INTEGER),
    interruption: merged.interruption === undefined ? undefined : asOneOf(merged.interruption, ['page', 'epoch'], 'interruption'),
    runtime,
    isIsolated: asOneOf(merged.isolation ?? 'instance', ['instance', 'call'], 'isolation') === 'call',
    snapshot: asBoolean(merged.snapshot, 'snapshot'),
    maxCalls: asInteger(merged.maxCalls, 'maxCalls', undefined, Number.MAX_SAFE_INTEGER),
    maxAgeMs: asInteger(merged.maxAgeMs, 'maxAgeMs', undefined, Number.MAX_SAFE_INTEGER),
    useWasi: asBoolean(merged.useWasi, 'useWasi'),
    ...asWasi(merged.wasi),
    output: asOutput(merged.enableWasiOutput),
    // The reference runtime has no cache, and rejects an explicit option.
    compileCache: asCompileCache(runtime === 'extism' ? merged.compileCache ?? false : merged.compileCache),
    instances: asInteger(merged.instances, 'instances', 1, MAX_INSTANCES),
    eager: asBoolean(merged.eager, 'eager'),
    maxQueue: asInteger(merged.maxQueue, 'maxQueue', DEFAULT_MAX_QUEUE, MAX_U32),
    maxQueueBytes: asInteger(merged.maxQueueBytes, 'maxQueueBytes', DEFAULT_MAX_QUEUE_BYTES, Number.MAX_SAFE_INTEGER),
    functions: names,
    storePermissions: permissions,
    logLevel: level
  }
  return { native, store, allowedPaths: merged.allowedPaths, inJavaScript: { name, names, bodies, logger, level, instances: native.instances, encodings: asEncodings(merged.schema) } }
}

module.exports = {
  MAX_TIMER_MS,
  MAX_U32,
  OPTION_KEYS,
  MEMORY_KEYS,
  STORE_KEYS,
  WASI_KEYS,
  CACHE_KEYS,
  CALL_KEYS,
  CALL_SYNC_KEYS,
  CLOSE_KEYS,
  pickOptions,
  pluginOptions
}
