'use strict'

// What guests do with the store of their plugin, and what they may not.

const { setTimeout: sleep } = require('node:timers/promises')
const { MemoryStore, createPlugin, openStore } = require('..')
const { guest } = require('./support/guest.js')
const { items, list, openStoreGuest } = require('./support/store-guest.js')

const MISSING = -1
const ACCESS_DENIED = -2
const CLOSED = -7
const VALUE_TOO_LARGE = -4
const STORE_FULL = -5
const INVALID_ARGUMENT = -6

let store
let opened

async function open (options) {
  const guest = await openStoreGuest({ store: { store, access: 'write', ...options } })
  opened.push(guest.plugin)
  return guest
}

beforeEach(() => {
  store = new MemoryStore()
  opened = []
})

afterEach(() => Promise.all(opened.map((plugin) => plugin.close())))

describe('a guest that may write', () => {
  test('reads the host\'s changes, and the host the guest\'s', async () => {
    const { run } = await open()
    store.set('from the host', 'héllo')
    expect(String(await run('get', 'from the host'))).toBe('héllo')
    expect(await run('set', 'from the guest', Buffer.from([0xFF, 0]), 0)).toBe(0)
    expect(store.get('from the guest')).toEqual(Buffer.from([0xFF, 0]))
  })

  test('distinguishes missing from empty', async () => {
    const { run } = await open()
    expect(await run('get', 'key')).toBe(MISSING)
    expect(await run('exists', 'key')).toBe(0)
    expect(await run('set', 'key', '', 0)).toBe(0)
    expect(await run('get', 'key')).toBe(0)
    expect(await run('exists', 'key')).toBe(1)
    expect(await run('hostMemoryGet', 'key')).toBe(0)
    expect(await run('hostMemoryGet', 'missing')).toBe(0)
  })

  test('may use the empty key', async () => {
    const { run } = await open()
    expect(await run('set', '', 'value', 0)).toBe(0)
    expect(String(await run('get', ''))).toBe('value')
    expect(store.get('')).toEqual(Buffer.from('value'))
  })

  test('deletes', async () => {
    const { run } = await open()
    store.set('key', 'value')
    expect(await run('delete', 'key')).toBe(1)
    expect(await run('delete', 'key')).toBe(0)
    expect(store.has('key')).toBe(false)
  })

  test('sets keys for some time only', async () => {
    const { run } = await open()
    expect(await run('set', 'short', 'value', 50)).toBe(0)
    expect(await run('compareAndSwap', 'swapped', -1, 'value', 50)).toBe(1)
    while (store.has('short') || store.has('swapped')) await sleep(5)
    expect(await run('get', 'short')).toBe(MISSING)
    expect(await run('get', 'swapped')).toBe(MISSING)
  })

  test('adds to numbers', async () => {
    const { run } = await open()
    expect(String(await run('increment', 'n', 5))).toBe('5')
    expect(String(await run('increment', 'n', -7))).toBe('-2')
    store.set('text', 'no number')
    expect(await run('increment', 'text', 1)).toBe(INVALID_ARGUMENT)
    store.set('most', '9223372036854775807')
    expect(await run('increment', 'most', 1)).toBe(INVALID_ARGUMENT)
  })

  test('compares and swaps: missing, empty, set and removed values', async () => {
    const { run } = await open()
    expect(await run('compareAndSwap', 'key', '', 'value', 0)).toBe(0)
    expect(await run('compareAndSwap', 'key', -1, '', 0)).toBe(1)
    expect(await run('compareAndSwap', 'key', -1, 'value', 0)).toBe(0)
    expect(await run('compareAndSwap', 'key', '', 'value', 0)).toBe(1)
    expect(await run('compareAndSwap', 'key', 'other', 'lost', 0)).toBe(0)
    expect(store.get('key')).toEqual(Buffer.from('value'))
    expect(await run('compareAndSwap', 'key', 'value', -1, 0)).toBe(1)
    expect(store.has('key')).toBe(false)
    expect(await run('compareAndSwap', 'key', -1, -1, 0)).toBe(1)
  })

  test('lists keys by prefix, page by page', async () => {
    const { run } = await open()
    for (const key of ['a:3', 'a:1', 'a:2', 'b:1']) store.set(key, '')
    expect(items(await run('keys', 'a:', '', 0))).toEqual(['', 'a:1', 'a:2', 'a:3'])
    const [cursor, ...first] = items(await run('keys', 'a:', '', 2))
    expect(first).toEqual(['a:1', 'a:2'])
    expect(items(await run('keys', 'a:', cursor, 2))).toEqual(['', 'a:3'])
    expect(items(await run('keys', 'nobody has it', '', 0))).toEqual([''])
  })

  test('gets many at once, missing ones told from empty ones', async () => {
    const { run } = await open()
    store.set('a', 'one')
    store.set('empty', '')
    expect(items(await run('getMany', list(['a', 'missing', 'empty', 'a'])))).toEqual(['one', undefined, '', 'one'])
    expect(await run('getMany', '')).toBe(0)
    expect(await run('getMany', list(Array(1_000).fill('a')))).toHaveLength(1_000 * 7)
  })

  test('gets an error for invalid arguments, and can continue', async () => {
    const { run } = await open()
    const long = 'k'.repeat(65_537)
    const bytes = Buffer.from([0xFF])
    expect(await run('get', long)).toBe(INVALID_ARGUMENT)
    expect(await run('get', bytes)).toBe(INVALID_ARGUMENT)
    expect(await run('get', 12_345_678)).toBe(INVALID_ARGUMENT)
    expect(await run('set', 'key', 12_345_678, 0)).toBe(INVALID_ARGUMENT)
    expect(await run('set', 'key', -1, 0)).toBe(INVALID_ARGUMENT)
    expect(await run('set', 'key', 'value', -1)).toBe(INVALID_ARGUMENT)
    expect(await run('set', 'key', 'value', 2n ** 63n - 1n)).toBe(0)
    expect(await run('keys', '', '', -1)).toBe(INVALID_ARGUMENT)
    expect(await run('getMany', 'no list')).toBe(INVALID_ARGUMENT)
    expect(await run('getMany', list(['a', undefined]))).toBe(INVALID_ARGUMENT)
    expect(await run('getMany', list(Array(1_001).fill('a')))).toBe(INVALID_ARGUMENT)
    expect(await run('compareAndSwap', 'key', 12_345_678, -1, 0)).toBe(INVALID_ARGUMENT)
    expect(String(await run('get', 'key'))).toBe('value')
  })
})

describe('permissions', () => {
  test('a store alone may be read and not changed, and refused operations are counted', async () => {
    const { plugin, run } = await openStoreGuest({ store })
    opened.push(plugin)
    store.set('key', '1')
    expect(String(await run('get', 'key'))).toBe('1')
    expect(String(await run('hostMemoryGet', 'key'))).toBe('1')
    expect(await run('exists', 'key')).toBe(1)
    expect(await run('get', 'missing')).toBe(MISSING)
    expect(items(await run('keys', '', '', 0))).toEqual(['', 'key'])
    expect(await run('set', 'key', '2', 0)).toBe(ACCESS_DENIED)
    expect(await run('delete', 'key')).toBe(ACCESS_DENIED)
    expect(await run('increment', 'key', 1)).toBe(ACCESS_DENIED)
    expect(await run('compareAndSwap', 'key', '1', '2', 0)).toBe(ACCESS_DENIED)
    expect(store.get('key')).toBe('1')
    expect(plugin.stats().store).toEqual({ reads: 4, hits: 3, writes: 0, failed: { ACCESS_DENIED: 4 } })
  })

  test('a guest cannot reach keys outside of its prefix', async () => {
    const { plugin, run } = await open({ prefix: 'tenant-1:' })
    store.set('tenant-2:secret', 'no')
    store.set('secret', 'no')
    store.set('tenant-1:key', 'yes')
    for (const key of ['secret', '../secret', 'tenant-2:secret', '\0secret', '']) {
      expect(await run('get', key)).toBe(MISSING)
      expect(await run('hostMemoryGet', key)).toBe(0)
      expect(await run('delete', key)).toBe(0)
    }
    expect(String(await run('get', 'key'))).toBe('yes')
    expect(items(await run('getMany', list(['secret', 'key'])))).toEqual([undefined, 'yes'])
    for (const cursor of ['', 's', 'secret', 'tenant-', 'tenant-2:', 'tenant-2']) {
      for (const prefix of ['', 's', 'tenant-', 'tenant-2:']) {
        const [, ...keys] = items(await run('keys', prefix, cursor, 0))
        expect(keys.filter((key) => key !== 'key')).toEqual([])
      }
    }
    expect(await run('set', 'secret', 'mine', 0)).toBe(0)
    expect(await run('increment', 'n', 1)).toEqual(Buffer.from('1'))
    expect(await run('compareAndSwap', 'tenant-2:secret', 'no', 'mine', 0)).toBe(0)
    expect([...store.keys()].sort()).toEqual([
      'secret', 'tenant-1:key', 'tenant-1:n', 'tenant-1:secret', 'tenant-2:secret'
    ])
    expect(store.get('secret')).toBe('no')
    expect(plugin.stats().store.writes).toBe(2)
  })

  test('a value may be as large as allowed, 1 MiB by default', async () => {
    const { run } = await open({ maxValueBytes: 3 })
    expect(await run('set', 'key', 'abc', 0)).toBe(0)
    expect(await run('set', 'key', 'abcd', 0)).toBe(VALUE_TOO_LARGE)
    expect(await run('compareAndSwap', 'key', 'abc', 'abcd', 0)).toBe(VALUE_TOO_LARGE)
    const another = await open()
    expect(await another.run('set', 'key', Buffer.alloc(1 << 20), 0)).toBe(0)
    expect(await another.run('set', 'key', Buffer.alloc((1 << 20) + 1), 0)).toBe(VALUE_TOO_LARGE)
  })

  test('there may be as many keys as allowed, and those can be changed', async () => {
    const { plugin, run } = await open({ prefix: 'p:', maxKeys: 2 })
    store.set('other', '')
    store.set('p:host', '1')
    expect(await run('set', 'guest', '', 0)).toBe(0)
    expect(await run('set', 'more', '', 0)).toBe(STORE_FULL)
    expect(await run('increment', 'more', 1)).toBe(STORE_FULL)
    expect(await run('compareAndSwap', 'more', -1, '', 0)).toBe(STORE_FULL)
    expect(await run('set', 'guest', 'changed', 0)).toBe(0)
    expect(await run('delete', 'host')).toBe(1)
    expect(await run('set', 'more', '', 0)).toBe(0)
    expect(plugin.stats().store.failed).toEqual({ STORE_FULL: 3 })
  })

  test('instances that write at the same time add no more keys than allowed, and lose no update', async () => {
    const { plugin, run } = await openStoreGuest({ store: { store, access: 'write', maxKeys: 10 }, instances: 4 })
    opened.push(plugin)
    await Promise.all(Array.from({ length: 200 }, (_, n) => run('increment', `n${n % 5}`, 1)))
    for (let n = 0; n < 5; n++) expect(String(store.get(`n${n}`))).toBe('40')
    const set = await Promise.all(Array.from({ length: 40 }, (_, n) => run('set', `more ${n}`, '', 0)))
    expect(set.filter((result) => result === 0)).toHaveLength(5)
    expect(store.size).toBe(10)
  })

  test('a new store if only permissions are passed', async () => {
    const { plugin, run } = await openStoreGuest({ store: { access: 'write' } })
    opened.push(plugin)
    expect(await run('set', 'key', 'value', 0)).toBe(0)
    expect(String(await run('get', 'key'))).toBe('value')
  })

  test('a bounded store rejects what does not fit', async () => {
    store = new MemoryStore([], { maxBytes: 1_000 })
    const { run } = await open()
    expect(await run('set', 'key', Buffer.alloc(500), 0)).toBe(0)
    expect(await run('set', 'key', Buffer.alloc(1_000), 0)).toBe(VALUE_TOO_LARGE)
  })

  test('a guest learns that its store has been closed', async () => {
    const handle = await openStore('memory:')
    const { plugin, run } = await openStoreGuest({ store: { store: handle, access: 'write' } })
    opened.push(plugin)
    await handle.close()
    expect(await run('get', 'key')).toBe(CLOSED)
    expect(await run('set', 'key', 'value', 0)).toBe(CLOSED)
    await expect(run('hostMemoryGet', 'key')).rejects.toMatchObject({ code: 'CLOSED' })
  })

  test.each([
    ['store must be', 'text'],
    ['store must be', []],
    ['storage', { storage: new MemoryStore() }],
    ['store.store must be', { store: new Map() }],
    ['store.prefix', { prefix: 1 }],
    ['store.prefix', { prefix: '\uD800' }],
    ['store.prefix', { prefix: 'p'.repeat(1_025) }],
    ['store.access must be "read" or "write", not "readwrite"', { access: 'readwrite' }],
    ['store.maxValueBytes', { maxValueBytes: 0 }],
    ['store.maxKeys', { maxKeys: 1.5 }]
  ])('what is refused: %s', async (message, option) => {
    await expect(createPlugin(await guest('store'), { store: option })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT', message: expect.stringContaining(message)
    })
  })
})
