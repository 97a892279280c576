'use strict'

// The Map-like face of the store that lives in Rust.

const binding = require('../binding.js')
const { asInteger } = require('./checks.js')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { pick } = require('./objects.js')
const { asLifetime, asValue, checkKey, checkNewKey } = require('./store-entries.js')

const STORE_KEYS = { maxBytes: 'maxBytes' }

// Lets `nativeMemoryStore` reach what only this file may.
const SECRET = Symbol('extism-host')

class MemoryStore {
  #native

  // With the secret for `named` alone.
  constructor (entries, options, native) {
    this.#native = options === SECRET ? native : new binding.MemoryStore(asMaxBytes(options))
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

  static named (name) {
    if (typeof name !== 'string' || name === '') {
      throw invalidArgument(`a store's name must be a string that is not empty, not ${describe(name)}`)
    }
    return new MemoryStore(undefined, SECRET, binding.MemoryStore.named(name))
  }

  /** The native store of a MemoryStore; `undefined` for anything else. */
  static [SECRET] (store) {
    return typeof store === 'object' && store !== null && #native in store ? store.#native : undefined
  }

  get size () {
    return this.#native.size
  }

  set (key, value, options) {
    checkNewKey(key)
    const refusal = this.#native.set(key, asValue(value), asLifetime(options))
    if (refusal !== null) throw codedError(refusal.code, refusal.message)
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

/** How many bytes a store may have, from the options of one that is made; `undefined` without a bound. */
function asMaxBytes (options) {
  if (options === undefined || options === null) return undefined
  const { maxBytes } = pick(options, STORE_KEYS, 'the options of a store')
  return asInteger(maxBytes, 'maxBytes', undefined, Number.MAX_SAFE_INTEGER)
}

/** The native store of a MemoryStore; `undefined` for anything else. */
function nativeMemoryStore (store) {
  return MemoryStore[SECRET](store)
}

module.exports = { MemoryStore, nativeMemoryStore }
