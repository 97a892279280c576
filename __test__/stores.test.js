'use strict'

const { openStore, MemoryStore, Store } = require('..')
const { runNode } = require('./support/processes.js')
const { describeStore } = require('./support/store-suite.js')
const { until } = require('./support/until.js')

describeStore('memory:', async () => ['memory:'])

let names = 0
// Somebody has to have it, or it is gone when it is closed.
let kept
describeStore('memory:name', async () => {
  const name = `of the suite ${process.pid} ${names++}`
  kept = MemoryStore.named(name)
  return [`memory:${name}`]
}, { isShared: true, canReopen: true })

describeStore('a MemoryStore', async () => {
  kept = new MemoryStore()
  return [kept]
}, { canReopen: true })

describe('openStore', () => {
  test('opens known URLs, and lists them for an unknown one', async () => {
    const store = await openStore(new URL('memory:'))
    expect(store).toBeInstanceOf(Store)
    expect(String(store)).toBe('[object Store]')
    await store[Symbol.asyncDispose]()
    for (const url of ['', 'memory', 'memcached://user:secret@host']) {
      const error = await openStore(url).catch((error) => error)
      expect(error).toMatchObject({ name: 'Error', code: 'NO_SUCH_STORE', message: expect.stringMatching(/memory:/) })
      expect(error.message).not.toMatch(/secret/)
    }
  })

  test('rejects values that are not a store, and invalid options', async () => {
    const refused = [
      [], [null], [5], [{}], [new Map()], ['memory:', { maxBytes: 0 }], ['memory:', { maxBytes: 1.5 }], ['memory:', { max: 1 }], ['memory:', 5],
      ['memory:named', { maxBytes: 4096 }], [new MemoryStore(), { maxBytes: 4096 }]
    ]
    for (const args of refused) {
      await expect(openStore(...args)).rejects.toEqual(expect.objectContaining({ name: 'TypeError', code: 'INVALID_ARGUMENT' }))
    }
    expect(() => new Store()).toThrow(TypeError)
  })

  test('a MemoryStore and its Store share their entries', async () => {
    const memory = new MemoryStore([['text', 'from the map']])
    const store = await openStore(memory)
    expect(String(await store.get('text'))).toBe('from the map')
    await store.set('bytes', 'from the store')
    expect(memory.get('bytes')).toEqual(Buffer.from('from the store'))
    expect(await store.increment('count')).toBe(1)
    expect(memory.get('count')).toBe('1')
    const changes = store.watch()
    // It watches before it does anything else.
    await store.has('x')
    memory.set('text', 'again').delete('bytes')
    expect((await changes.next()).value).toEqual({ type: 'set', key: 'text', value: Buffer.from('again') })
    expect((await changes.next()).value).toEqual({ type: 'delete', key: 'bytes' })
    await store.close()
    expect(memory.get('text')).toBe('again')
  })
})

describe('a store in memory', () => {
  test('with maxBytes evicts the least recently used entries, and rejects what never fits', async () => {
    const store = await openStore('memory:', { maxBytes: 100_000 })
    const changes = store.watch()
    await store.set('used', Buffer.alloc(1_000))
    for (let number = 0; number < 500; number++) {
      await store.set(String(number), Buffer.alloc(1_000))
      await store.get('used')
    }
    expect(await store.has('used')).toBe(true)
    expect(await store.has('499')).toBe(true)
    expect(await store.has('0')).toBe(false)
    await expect(store.set('large', Buffer.alloc(100_000))).rejects.toMatchObject({ code: 'VALUE_TOO_LARGE' })
    let count = 0
    for await (const key of store.keys()) count += key.length > 0
    expect(count).toBeGreaterThan(60)
    expect(count).toBeLessThan(100)
    expect((await changes.next()).value.key).toBe('used')
    await store.close()
  })

  test('as a MemoryStore has maxBytes and lifetimes too', async () => {
    const store = new MemoryStore([['short', 'value']], { maxBytes: 10_000 })
    expect(() => store.set('large', Buffer.alloc(10_000))).toThrow(expect.objectContaining({ name: 'Error', code: 'VALUE_TOO_LARGE' }))
    expect(store.set('short', 'value', { ttlMs: 30 }).get('short')).toBe('value')
    store.set('for ever', 'value', {})
    await until(() => !store.has('short'))
    expect([store.get('short'), store.size, [...store.keys()]]).toEqual([undefined, 1, ['for ever']])
    for (const options of [{ ttlMs: 0 }, { ttlMs: -1 }, { ttlMs: NaN }, { ttl: 1 }, 5]) {
      expect(() => store.set('key', 'value', options)).toThrow(TypeError)
    }
    expect(() => new MemoryStore(null, { maxBytes: -1 })).toThrow(TypeError)
    expect(() => new MemoryStore(null, 5)).toThrow(TypeError)
  })

  test('that is open does not keep the process alive, but a pending operation does', async () => {
    const { code, output } = await runNode(['-e', `
      const { openStore } = require('.')
      openStore('memory:').then(async (store) => {
        store.watch()
        await store.set('key', 'value', { ttlMs: 60_000 })
        store.increment('n').then(console.log)
      })`])
    expect({ code, output }).toEqual({ code: 0, output: '1\n' })
  })
})
