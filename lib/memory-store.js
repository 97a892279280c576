'use strict'

// MemoryStore: the Map-like class over the native store in memory.

const binding = require('../binding.js')
const { asInteger } = require('./checks.js')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { pick } = require('./objects.js')
const { asLifetime, asValue, checkKey, checkNewKey } = require('./store-entries.js')

const STORE_KEYS = { maxBytes: 'maxBytes' }

// Gives only this file access to the native store.
const SECRET = Symbol('extism-host')

class MemoryStore {
  #native

  // Only `named` passes `native`, with the secret as `options`.
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
      throw invalidArgument(`a store's name must be a non-empty string, not ${describe(name)}`)
    }
    return new MemoryStore(undefined, SECRET, binding.MemoryStore.named(name))
  }

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
      // Skip a key that was deleted since the iteration began, like a Map.
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

/** Checks the constructor's options. Returns the limit in bytes, or `undefined` for none. */
function asMaxBytes (options) {
  if (options === undefined || options === null) return undefined
  const { maxBytes } = pick(options, STORE_KEYS, 'the options of a store')
  return asInteger(maxBytes, 'maxBytes', undefined, Number.MAX_SAFE_INTEGER)
}

/** Returns the native store of a MemoryStore, or `undefined` for any other value. */
function nativeMemoryStore (store) {
  return MemoryStore[SECRET](store)
}

module.exports = { MemoryStore, nativeMemoryStore }
