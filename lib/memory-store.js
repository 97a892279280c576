'use strict'

// The Map-like face of the store that lives in Rust.

const binding = require('../binding.js')
const { asBytes } = require('./bytes.js')
const { describe, invalidArgument } = require('./errors.js')

// Lets `nativeStore` reach what only this file may.
const SECRET = Symbol('extism-host')

class MemoryStore {
  #native

  // The others are for `named` alone.
  constructor (entries, secret, native) {
    this.#native = secret === SECRET ? native : new binding.MemoryStore()
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

/** The native store of a MemoryStore; `undefined` for anything else. */
function nativeStore (store) {
  return MemoryStore[SECRET](store)
}

module.exports = { MemoryStore, nativeStore }
