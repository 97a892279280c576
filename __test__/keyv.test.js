'use strict'

const { Keyv } = require('keyv')
const { keyvAdapter, openStore, MemoryStore } = require('..')
const { until } = require('./support/until.js')

describe('Keyv over a store', () => {
  let store
  const keyv = (options) => new Keyv({ store: keyvAdapter(store), throwOnErrors: true, ...options })

  beforeEach(async () => { store = await openStore('memory:') })
  afterEach(() => store.close())

  test('sets, gets and deletes values of any kind', async () => {
    const cache = keyv()
    for (const value of ['text', '', 5, 0, false, null, [1], { an: { object: '💜' } }]) {
      expect(await cache.set('key', value)).toBe(true)
      expect(await cache.get('key')).toEqual(value)
    }
    expect(await cache.has('key')).toBe(true)
    expect([await cache.delete('key'), await cache.delete('key')]).toEqual([true, false])
    expect([await cache.has('key'), await cache.get('key')]).toEqual([false, undefined])
  })

  test('sets their lifetimes', async () => {
    const cache = keyv({ ttl: 40 })
    await cache.set('default', 1)
    await cache.set('own', 2, 60_000)
    await cache.set('fraction', 3, 0.5)
    await until(async () => await cache.get('default') === undefined)
    expect([await cache.get('own'), await cache.get('fraction')]).toEqual([2, undefined])
    // It is the store that removes them.
    expect(await store.has('keyv:default')).toBe(false)
  })

  test('keeps them forever with a time of 0', async () => {
    const adapter = keyvAdapter(store)
    expect(await adapter.set('key', 'value', 0)).toBe(true)
    expect(await adapter.get('key')).toBe('value')
  })

  test('has namespaces that do not see each other, and clears one', async () => {
    const [one, other] = [keyv({ namespace: 'one' }), keyv({ namespace: 'other' })]
    await one.set('key', 1)
    await other.set('key', 2)
    expect([await one.get('key'), await other.get('key')]).toEqual([1, 2])
    await Promise.all(Array.from({ length: 1_500 }, (_, number) => one.set(`key ${number}`, number)))
    await one.clear()
    expect([await one.get('key'), await other.get('key')]).toEqual([undefined, 2])
    await store.set('not of Keyv', 'x')
    await other.clear()
    expect(await store.has('not of Keyv')).toBe(true)
  })

  test('without a namespace it clears everything', async () => {
    const cache = keyv({ namespace: undefined })
    await cache.set('key', 1)
    expect(await store.has('key')).toBe(true)
    await store.set('other', 'x')
    await cache.clear()
    expect(await store.has('other')).toBe(false)
  })

  test('gets, sets, checks and deletes many', async () => {
    const cache = keyv()
    expect(await cache.setMany([{ key: 'a', value: 1 }, { key: 'b', value: 2, ttl: 30 }, { key: 'c', value: 3, ttl: 60_000 }])).toEqual([true, true, true])
    expect(await cache.getMany(['c', 'none', 'a', 'b'])).toEqual([3, undefined, 1, 2])
    expect(await cache.get(['a', 'none'])).toEqual([1, undefined])
    expect(await cache.has(['a', 'none'])).toEqual([true, false])
    await until(async () => !await cache.has('b'))
    expect([await cache.delete(['a', 'c']), await cache.delete(['a', 'c'])]).toEqual([true, false])
  })

  test('iterates over its own', async () => {
    const [one, other] = [keyv({ namespace: 'one' }), keyv({ namespace: 'other' })]
    for (let number = 0; number < 3; number++) await one.set(`key ${number}`, number)
    await other.set('key', 'other')
    const entries = []
    for await (const entry of one.iterator()) entries.push(entry)
    expect(entries).toEqual([['key 0', 0], ['key 1', 1], ['key 2', 2]])
  })

  test('gets the errors of the store', async () => {
    const cache = keyv()
    await expect(cache.set('k'.repeat(70_000), 1)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(keyv({ serialize: undefined, deserialize: undefined }).set('key', { an: 'object' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await store.close()
    await expect(cache.set('key', 1)).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test('accepts a MemoryStore too, and nothing else', async () => {
    const memory = new MemoryStore()
    const cache = new Keyv({ store: keyvAdapter(memory) })
    await cache.set('key', 'value')
    expect([...memory.keys()]).toEqual(['keyv:key'])
    for (const value of [undefined, null, new Map(), 'memory:']) expect(() => keyvAdapter(value)).toThrow('keyvAdapter takes a Store or a MemoryStore')
  })
})
