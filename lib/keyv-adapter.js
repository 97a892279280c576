'use strict'

// An adapter from our stores to the interface of Keyv's stores. Keyv 5 and 6 both accept it: 6 supports stores for 5
// if they have all methods, and no `namespace` before Keyv sets it.

const { describe, invalidArgument } = require('./errors.js')
const { asStore } = require('./store.js')

/** The number of keys to read or remove at a time. */
const BATCH = 1_000

class KeyvAdapter {
  /** Keyv 5 uses a store's iterator only if it knows the store's dialect. */
  opts = { dialect: 'redis', url: '' }

  #store

  constructor (store) {
    this.#store = store
  }

  async get (key) {
    return asText(await this.#store.get(key))
  }

  async getMany (keys) {
    return (await this.#store.getMany(keys)).map(asText)
  }

  async set (key, value, ttl) {
    await this.#store.set(key, checkValue(value), { ttlMs: asWholeMs(ttl) })
    return true
  }

  async setMany (entries) {
    // Entries with the same lifetime go into one call.
    const entriesOf = new Map()
    for (const { key, value, ttl } of entries) {
      const ttlMs = asWholeMs(ttl)
      if (!entriesOf.has(ttlMs)) entriesOf.set(ttlMs, [])
      entriesOf.get(ttlMs).push([key, checkValue(value)])
    }
    await Promise.all([...entriesOf].map(([ttlMs, entries]) => this.#store.setMany(entries, { ttlMs })))
    return entries.map(() => true)
  }

  async delete (key) {
    return this.#store.delete(key)
  }

  async deleteMany (keys) {
    return await this.#store.deleteMany(keys) > 0
  }

  async has (key) {
    return this.#store.has(key)
  }

  async hasMany (keys) {
    return Promise.all(keys.map((key) => this.#store.has(key)))
  }

  /** Removes the keys of the namespace that Keyv has set, or all keys if there is none. */
  async clear () {
    for await (const keys of this.#batches(this.namespace)) await this.#store.deleteMany(keys)
  }

  async * iterator (namespace) {
    for await (const keys of this.#batches(namespace)) {
      const values = await this.#store.getMany(keys)
      for (const [index, key] of keys.entries()) {
        // Skip a key that was removed meanwhile.
        if (values[index] !== undefined) yield [key, asText(values[index])]
      }
    }
  }

  /** Batches of the keys of a namespace, or of all keys. Keyv itself puts the namespace before its keys. */
  async * #batches (namespace) {
    let batch = []
    const prefix = namespace === undefined ? '' : `${namespace}:`
    for await (const key of this.#store.keys({ prefix })) {
      batch.push(key)
      if (batch.length < BATCH) continue
      yield batch
      batch = []
    }
    if (batch.length > 0) yield batch
  }
}

function asText (value) {
  return value?.toString()
}

/** Rounds up: Keyv's lifetimes may be fractions. */
function asWholeMs (ttl) {
  return typeof ttl === 'number' && ttl > 0 ? Math.ceil(ttl) : undefined
}

function checkValue (value) {
  if (typeof value === 'string') return value
  throw invalidArgument(`Keyv must serialize values to strings, not pass ${describe(value)}; do not turn its serialization off`)
}

function keyvAdapter (store) {
  const asynchronous = asStore(store)
  if (asynchronous === undefined) {
    throw invalidArgument(`keyvAdapter takes a Store or a MemoryStore, not ${describe(store)}`)
  }
  return new KeyvAdapter(asynchronous)
}

module.exports = { keyvAdapter }
