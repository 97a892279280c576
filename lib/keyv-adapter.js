'use strict'

// A store as Keyv wants its stores to be. Keyv 5 and 6 both take it: 6 takes those of 5 in, where they
// have all methods and no `namespace` of their own before they get one.

const { describe, invalidArgument } = require('./errors.js')
const { asStore } = require('./store.js')

/** Keys that are read or removed at a time. */
const BATCH = 1_000

class KeyvAdapter {
  /** Keyv 5 asks stores for an iterator only where it knows their dialect. */
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
    // One call for each lifetime.
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

  /** Removes the keys of the namespace that Keyv has set, or all where there is none. */
  async clear () {
    for await (const keys of this.#batches(this.namespace)) await this.#store.deleteMany(keys)
  }

  async * iterator (namespace) {
    for await (const keys of this.#batches(namespace)) {
      const values = await this.#store.getMany(keys)
      for (const [index, key] of keys.entries()) {
        // It may have gone meanwhile.
        if (values[index] !== undefined) yield [key, asText(values[index])]
      }
    }
  }

  /** The keys of a namespace, which Keyv itself puts before them, or all keys. */
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

/** Keyv's lifetimes need not be whole. */
function asWholeMs (ttl) {
  return typeof ttl === 'number' && ttl > 0 ? Math.ceil(ttl) : undefined
}

function checkValue (value) {
  if (typeof value === 'string') return value
  throw invalidArgument(`Keyv must make strings of its values, and this one is ${describe(value)}; leave its serialization on`)
}

function keyvAdapter (store) {
  const asynchronous = asStore(store)
  if (asynchronous === undefined) {
    throw invalidArgument(`keyvAdapter takes a Store or a MemoryStore, not ${describe(store)}`)
  }
  return new KeyvAdapter(asynchronous)
}

module.exports = { keyvAdapter }
