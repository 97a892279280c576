'use strict'

// The class Store, which gives all stores one asynchronous interface. Operations run on native threads.

const { completeInBackground: complete, openStore: open, storeOfMemory } = require('./calls.js')
const { asBytes } = require('./bytes.js')
const { asBoolean, asInteger, checkSignal } = require('./checks.js')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { nativeMemoryStore } = require('./memory-store.js')
const { pick } = require('./objects.js')
const { asLifetime, asValue, checkKey, checkNewKey } = require('./store-entries.js')
const { StoreChanges } = require('./store-changes.js')

/** The number of keys to fetch at a time. */
const PAGE = 1_000

const OPEN_KEYS = { maxBytes: 'maxBytes', timeoutMs: 'timeoutMs', cacheBytes: 'cacheBytes', ca: 'ca', required: 'required' }
const LIST_KEYS = { prefix: 'prefix' }
const WATCH_KEYS = { signal: 'signal' }

/** The longest time limit, in milliseconds. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1

const MAX_I64 = 2n ** 63n - 1n

// Only `openStore` and `asStore` may construct a Store.
const SECRET = Symbol('extism-host')
const LIST = Symbol('list')

class Store {
  #native
  /** Running watches. */
  #watches = new Set()
  /** Resolves when all requested watches have started; `undefined` if none is starting. */
  #startingWatches
  /** The number of pending operations, and the function to call when it reaches 0. */
  #unfinished = 0
  #allFinished
  #closed

  constructor (secret, native) {
    if (secret !== SECRET) {
      throw invalidArgument('Store cannot be constructed: use openStore()')
    }
    this.#native = native
  }

  static [SECRET] (store) {
    return typeof store === 'object' && store !== null && #native in store ? store.#native : undefined
  }

  async get (key) {
    checkKey(key)
    const known = this.#native.getNow(key)
    if (known !== undefined) return known ?? undefined
    return await this.#run((number) => this.#native.get(number, key)) ?? undefined
  }

  async set (key, value, options) {
    checkNewKey(key)
    const input = asValue(value)
    const lifetime = asLifetime(options)
    await this.#run((number) => this.#native.set(number, key, input, lifetime))
  }

  async delete (key) {
    checkKey(key)
    return this.#run((number) => this.#native.delete(number, key))
  }

  async has (key) {
    checkKey(key)
    return this.#run((number) => this.#native.has(number, key))
  }

  async * keys (options) {
    const { prefix = '' } = pick(options ?? {}, LIST_KEYS, 'the options of keys()')
    let cursor
    do {
      const page = await this[LIST](prefix, cursor)
      yield * page.keys
      cursor = page.cursor
    } while (cursor !== null)
  }

  async [LIST] (prefix, cursor) {
    checkKey(prefix)
    const [next, ...keys] = await this.#run((number) => this.#native.list(number, prefix, cursor, PAGE))
    return { keys, cursor: next }
  }

  async increment (key, delta = 1) {
    checkNewKey(key)
    if (typeof delta !== 'bigint' && !Number.isSafeInteger(delta)) {
      throw invalidArgument(`the delta must be a safe integer or a bigint, not ${describe(delta)}`)
    }
    const big = BigInt(delta)
    if (big > MAX_I64 || big < -MAX_I64 - 1n) throw invalidArgument('the delta must fit into 64 bits')
    return this.#run((number) => this.#native.increment(number, key, big))
  }

  async compareAndSwap (key, expected, value, options) {
    checkNewKey(key)
    const [before, after] = [expected, value].map((value) => value === undefined || value === null ? undefined : asValue(value))
    const lifetime = asLifetime(options)
    return this.#run((number) => this.#native.compareAndSwap(number, key, before, after, lifetime))
  }

  async getMany (keys) {
    const list = asKeys(keys)
    const values = await this.#run((number) => this.#native.getMany(number, list))
    return values.map((value) => value ?? undefined)
  }

  async setMany (entries, options) {
    const keys = []
    const values = []
    for (const entry of asIterable(entries, 'entries must be an iterable of [key, value]')) {
      if (entry === null || typeof entry !== 'object') {
        throw invalidArgument(`each entry must be [key, value], not ${describe(entry)}`)
      }
      checkNewKey(entry[0])
      keys.push(entry[0])
      values.push(asValue(entry[1]))
    }
    const lifetime = asLifetime(options)
    await this.#run((number) => this.#native.setMany(number, keys, values, lifetime))
  }

  async deleteMany (keys) {
    const list = asKeys(keys)
    return this.#run((number) => this.#native.deleteMany(number, list))
  }

  watch (prefix = '', options) {
    checkKey(prefix)
    const { signal } = pick(options ?? {}, WATCH_KEYS, 'the options of watch()')
    if (signal !== undefined) checkSignal(signal)
    const started = signal?.aborted
      ? Promise.reject(signal.reason)
      : complete(this.#native, (number) => this.#native.watch(number, prefix))
    const watch = new StoreChanges(started, signal, () => this.#watches.delete(watch))
    this.#watches.add(watch)
    const all = Promise.allSettled([this.#startingWatches, started]).then(() => {
      if (this.#startingWatches === all) this.#startingWatches = undefined
    })
    this.#startingWatches = all
    return watch
  }

  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    await this.#startingWatches
    if (this.#unfinished > 0) await new Promise((resolve) => { this.#allFinished = resolve })
    await complete(this.#native, (number) => this.#native.close(number))
    for (const watch of this.#watches) watch.return()
  }

  async [Symbol.asyncDispose] () {
    await this.close()
  }

  get [Symbol.toStringTag] () {
    return 'Store'
  }

  /** Runs an operation, once all requested watches have started, so that they see it. `close` waits for it. */
  async #run (start) {
    if (this.#closed !== undefined) throw codedError('CLOSED', 'the store is closed')
    this.#unfinished++
    try {
      while (this.#startingWatches !== undefined) await this.#startingWatches
      return await complete(this.#native, start)
    } finally {
      if (--this.#unfinished === 0) this.#allFinished?.()
    }
  }
}

function asIterable (value, what) {
  if (typeof value?.[Symbol.iterator] !== 'function' || typeof value === 'string') {
    throw invalidArgument(`${what}, not ${describe(value)}`)
  }
  return value
}

function asKeys (keys) {
  const list = [...asIterable(keys, 'keys must be an iterable of strings')]
  list.forEach(checkKey)
  return list
}

/** Checks the options of `openStore` for the native addon. */
function asOpenOptions (options) {
  const { maxBytes, timeoutMs, cacheBytes, ca, required } = pick(options ?? {}, OPEN_KEYS, 'the options of a store')
  return {
    maxBytes: asInteger(maxBytes, 'maxBytes', undefined, Number.MAX_SAFE_INTEGER),
    timeoutMs: asInteger(timeoutMs, 'timeoutMs', undefined, MAX_TIMEOUT_MS),
    cacheBytes: asInteger(cacheBytes, 'cacheBytes', undefined, Number.MAX_SAFE_INTEGER, 0),
    ca: asPem(ca),
    required: required === undefined ? undefined : asBoolean(required, 'required')
  }
}

function asPem (ca) {
  if (ca === undefined || typeof ca === 'string') return ca
  const bytes = asBytes(ca)
  if (bytes === undefined) throw invalidArgument(`ca must be PEM as a string or bytes, not ${describe(ca)}`)
  return Buffer.from(bytes).toString()
}

async function openStore (source, options) {
  const openOptions = asOpenOptions(options)
  if (nativeMemoryStore(source) !== undefined) {
    if (Object.values(openOptions).some((option) => option !== undefined)) {
      throw invalidArgument('a MemoryStore takes its options in its constructor: new MemoryStore(entries, { maxBytes })')
    }
    return asStore(source)
  }
  const url = source instanceof URL ? source.href : source
  if (typeof url !== 'string') {
    throw invalidArgument(`openStore takes a URL or a MemoryStore, not ${describe(source)}`)
  }
  return new Store(SECRET, await open(url, openOptions))
}

/** Returns the native store of a MemoryStore or a Store, or `undefined` for any other value. */
function nativeStore (store) {
  return nativeMemoryStore(store) ?? Store[SECRET](store)
}

/** Returns a Store unchanged, wraps a MemoryStore in one, and returns `undefined` for any other value. */
function asStore (store) {
  if (Store[SECRET](store) !== undefined) return store
  const memory = nativeMemoryStore(store)
  return memory === undefined ? undefined : new Store(SECRET, storeOfMemory(memory))
}

/** Lists one page of keys with a prefix: `{ keys, cursor }`. The cursor is for the next page, `null` on the last. */
async function listKeys (store, prefix, cursor) {
  if (cursor !== undefined && typeof cursor !== 'string') throw invalidArgument('the cursor must be the one returned with the previous page')
  return store[LIST](prefix, cursor)
}

module.exports = { Store, asStore, listKeys, nativeStore, openStore }
