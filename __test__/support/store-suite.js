'use strict'

// What every store does, whatever is behind it. The test file of a store calls `describeStore`.

const { once } = require('node:events')
const { setTimeout: sleep } = require('node:timers/promises')
const { Worker } = require('node:worker_threads')
const { createPlugin, openStore } = require('../..')
const { guest } = require('./guest.js')
const { until } = require('./until.js')

const LONGEST_KEY = 64 * 1024
const MANY = 2_500
/** Milliseconds: enough for some operations even where the machine is busy. */
const LIFETIME = 400

async function all (iterable) {
  const items = []
  for await (const item of iterable) items.push(item)
  return items
}

const withCode = (code) => expect.objectContaining({ code })

/**
 * Describes a store.
 *
 * `open()` resolves to what `openStore` takes, as arguments: of a store that is empty at the beginning of
 * each test.
 *
 * * `canReopen`: whether what was set is there when the store of the same arguments is opened again.
 * * `isShared`: whether worker threads that open the same URL have the same store, also at the same time.
 * * `isOrdered`: whether keys are listed in the order of their UTF-8.
 * * `tellsValues`: whether watches say what a key was set to.
 * * `tellsEach`: whether watches tell of each change, and not of those as one that follow closely.
 * * `tellsExpiry`: how many milliseconds after its time at the latest a watch is told that a key is gone.
 */
function describeStore (name, open, {
  canReopen = false, isShared = false, isOrdered = true, tellsValues = true, tellsEach = true, tellsExpiry = 2_000
} = {}) {
  describe(name, () => {
    let source
    let store
    let opened

    const openAgain = async () => {
      const another = await openStore(...source)
      opened.push(another)
      return another
    }

    beforeEach(async () => {
      source = await open()
      opened = []
      store = await openAgain()
    })

    afterEach(async () => {
      await Promise.all(opened.map((store) => store.close()))
    })

    test('get returns a new copy of the bytes, until the key is set again or deleted', async () => {
      expect(await store.get('key')).toBeUndefined()
      expect(await store.set('key', 'I 💜 Extism')).toBeUndefined()
      const value = await store.get('key')
      expect(value).toBeInstanceOf(Buffer)
      expect(value.toString()).toBe('I 💜 Extism')
      value[0] = 0
      expect((await store.get('key')).toString()).toBe('I 💜 Extism')
      await store.set('key', 'again')
      expect((await store.get('key')).toString()).toBe('again')
      expect([await store.has('key'), await store.delete('key'), await store.delete('key'), await store.has('key')])
        .toEqual([true, true, false, false])
      expect(await store.get('key')).toBeUndefined()
    })

    test('values are bytes of any type, and changing them afterwards does not change the store', async () => {
      const bytes = new Uint8Array([0, 0xFF, 0xC3, 0x28])
      const forms = [bytes, bytes.buffer, new DataView(bytes.buffer), Buffer.from(bytes), Uint8Array.from(bytes).subarray(0)]
      for (const form of forms) {
        const done = store.set('bytes', form)
        await done
        expect([...await store.get('bytes')]).toEqual([0, 0xFF, 0xC3, 0x28])
      }
      const changed = Uint8Array.from(bytes)
      const done = store.set('bytes', changed)
      changed.fill(7)
      await done
      expect([...await store.get('bytes')]).toEqual([0, 0xFF, 0xC3, 0x28])
    })

    test('an empty value is a value, and an empty key a key', async () => {
      await store.set('', 'of the empty key')
      await store.set('empty', '')
      expect((await store.get('')).toString()).toBe('of the empty key')
      expect(await store.get('empty')).toEqual(Buffer.alloc(0))
      expect([await store.has(''), await store.has('empty')]).toEqual([true, true])
      expect((await all(store.keys())).sort()).toEqual(['', 'empty'])
      expect(await store.delete('')).toBe(true)
      expect(await store.get('')).toBeUndefined()
    })

    test('keys are any text, up to 64 KiB, and each its own', async () => {
      const keys = ['a', 'A', ' a', 'a\0', 'a\0b', 'a/b', 'a:*', '?[a]', '\\', '"', '__proto__', '\u00E4', 'a\u0308', '👋', 'k'.repeat(LONGEST_KEY), 'ö'.repeat(LONGEST_KEY / 2)]
      for (const [place, key] of keys.entries()) await store.set(key, String(place))
      for (const [place, key] of keys.entries()) expect(String(await store.get(key))).toBe(String(place))
      expect((await all(store.keys())).sort()).toEqual([...keys].sort())
      expect(await all(store.keys({ prefix: 'a:*' }))).toEqual(['a:*'])
      expect(await all(store.keys({ prefix: '?[' }))).toEqual(['?[a]'])
    })

    test('a longer key is refused by everything', async () => {
      for (const key of ['k'.repeat(LONGEST_KEY + 1), 'ö'.repeat(LONGEST_KEY / 2) + 'k']) {
        const refused = [
          () => store.set(key, 'x'), () => store.delete(key), () => store.increment(key),
          () => store.compareAndSwap(key, undefined, 'x'), () => store.getMany(['a', key]), () => store.setMany([['a', 'x'], [key, 'x']]),
          () => store.deleteMany(['a', key])
        ]
        for (const call of refused) await expect(call()).rejects.toEqual(withCode('INVALID_ARGUMENT'))
      }
      expect(await all(store.keys())).toEqual([])
    })

    test('invalid keys and values are rejected, and nothing is lost', async () => {
      await store.set('key', 'value')
      const refused = [
        () => store.get(1), () => store.set(1, 'x'), () => store.set('key', 1), () => store.set('key'), () => store.set('key', null),
        () => store.set('\uD800', 'x'), () => store.set('key', '\uD800'), () => store.delete(), () => store.has(null),
        () => store.set('key', 'x', { ttlMs: 0 }), () => store.set('key', 'x', { ttlMs: 1.5 }), () => store.set('key', 'x', { ttlMs: '1' }),
        () => store.set('key', 'x', { ttl: 1 }), () => store.set('key', 'x', 5), () => store.increment('n', 1.5), () => store.increment('n', 'one'),
        () => store.increment('n', 2n ** 63n), () => store.increment('n', Number.MAX_SAFE_INTEGER + 1), () => store.getMany('key'),
        () => store.getMany([1]), () => store.setMany('ab'), () => store.setMany([['key']]), () => store.setMany(['ab']), () => store.deleteMany(5),
        () => store.keys({ prefix: 1 }).next(), () => store.keys({ suffix: 'x' }).next(), () => store.compareAndSwap('key', 1, 'x')
      ]
      for (const call of refused) await expect(call()).rejects.toEqual(withCode('INVALID_ARGUMENT'))
      expect(() => store.watch(1)).toThrow(withCode('INVALID_ARGUMENT'))
      expect(() => store.watch('', { signal: 1 })).toThrow(withCode('INVALID_ARGUMENT'))
      expect(String(await store.get('key'))).toBe('value')
      expect(await all(store.keys())).toEqual(['key'])
    })

    test('a value of 8 MiB comes back whole', async () => {
      const value = Buffer.alloc(8 << 20, '0123456789abcdef!')
      await store.set('large', value)
      expect((await store.get('large')).equals(value)).toBe(true)
      const [same] = await store.getMany(['large'])
      expect(same.equals(value)).toBe(true)
    })

    describe('lifetimes', () => {
      test('an expired key is gone for every operation', async () => {
        await store.set('short', 'value', { ttlMs: LIFETIME })
        await store.setMany([['s1', '1'], ['s2', '2']], { ttlMs: LIFETIME })
        expect(await store.compareAndSwap('swapped', undefined, '3', { ttlMs: LIFETIME })).toBe(true)
        expect(String(await store.get('short'))).toBe('value')
        await sleep(LIFETIME + 50)
        expect(await store.get('short')).toBeUndefined()
        expect(await store.has('s1')).toBe(false)
        expect(await store.delete('s2')).toBe(false)
        expect(await store.getMany(['short', 's1', 'swapped'])).toEqual([undefined, undefined, undefined])
        expect(await all(store.keys())).toEqual([])
        expect(await store.deleteMany(['short', 's1'])).toBe(0)
        expect(await store.increment('short')).toBe(1)
        expect(await store.compareAndSwap('swapped', undefined, 'new')).toBe(true)
      })

      test('setting a key again removes or replaces its lifetime; incrementing it does not', async () => {
        await store.setMany([['kept', '1'], ['swapped', '1'], ['many', '1'], ['counted', '1'], ['longer', '1']], { ttlMs: LIFETIME })
        await store.set('kept', '2')
        await store.compareAndSwap('swapped', '1', '2')
        await store.setMany([['many', '2']])
        await store.set('longer', '2', { ttlMs: 60_000 })
        expect(await store.increment('counted')).toBe(2)
        await sleep(LIFETIME + 50)
        const values = await store.getMany(['kept', 'swapped', 'many', 'counted', 'longer'])
        expect(values.map((value) => value?.toString())).toEqual(['2', '2', '2', undefined, '2'])
      })

      test('a lifetime may be longer than a human life', async () => {
        await store.set('long', 'value', { ttlMs: Number.MAX_SAFE_INTEGER })
        expect(String(await store.get('long'))).toBe('value')
      })
    })

    describe('keys', () => {
      const keyOf = (number) => `user:${String(number).padStart(5, '0')}`
      const fill = () => store.setMany(Array.from({ length: MANY }, (_, number) => [keyOf(number), '']))

      test('come once each, however many there are, and only those with the prefix', async () => {
        await fill()
        await store.setMany([['user', ''], ['uses', ''], ['', '']])
        const keys = await all(store.keys({ prefix: 'user:' }))
        if (!isOrdered) keys.sort()
        expect(keys).toEqual(Array.from({ length: MANY }, (_, number) => keyOf(number)))
        expect(await all(store.keys())).toHaveLength(MANY + 3)
        expect(await all(store.keys({ prefix: keyOf(7) }))).toEqual([keyOf(7)])
        expect(await all(store.keys({ prefix: 'nobody' }))).toEqual([])
      })

      test('that exist all the time are listed once while others change', async () => {
        await fill()
        const over = new AbortController()
        const others = (async () => {
          for (let round = 0; !over.signal.aborted; round++) {
            await store.setMany(Array.from({ length: 50 }, (_, number) => [`user:${round % 9}${number}x`, '']))
            await store.deleteMany(Array.from({ length: 50 }, (_, number) => `user:${round % 9}${number}x`))
          }
        })()
        const keys = []
        for await (const key of store.keys({ prefix: 'user:' })) {
          keys.push(key)
          if (keys.length % 500 === 0) await sleep(2)
        }
        over.abort()
        await others
        const lasting = keys.filter((key) => !key.endsWith('x')).sort()
        expect(lasting).toEqual(Array.from({ length: MANY }, (_, number) => keyOf(number)))
      })

      test('can be deleted while they are listed', async () => {
        await fill()
        for await (const key of store.keys()) await store.delete(key)
        expect(await all(store.keys())).toEqual([])
      })
    })

    describe('numbers', () => {
      test('are decimal digits of 64 bits, and a missing one is 0', async () => {
        expect(await store.increment('n')).toBe(1)
        expect(await store.increment('n', 41)).toBe(42)
        expect(await store.increment('n', -50n)).toBe(-8)
        expect(String(await store.get('n'))).toBe('-8')
        await store.set('n', '9007199254740991')
        expect(await store.increment('n', 0)).toBe(Number.MAX_SAFE_INTEGER)
        expect(await store.increment('n')).toBe(9007199254740992n)
        await store.set('n', String(2n ** 63n - 2n))
        expect(await store.increment('n')).toBe(2n ** 63n - 1n)
        await expect(store.increment('n')).rejects.toEqual(withCode('INVALID_ARGUMENT'))
        expect(await store.increment('least', -(2n ** 63n))).toBe(-(2n ** 63n))
      })

      test('are rejected if the value is something else, which stays', async () => {
        for (const value of ['one', '1.5', '', Buffer.from([0xFF])]) {
          await store.set('text', value)
          await expect(store.increment('text')).rejects.toEqual(withCode('INVALID_ARGUMENT'))
          expect((await store.get('text')).equals(Buffer.from(value))).toBe(true)
        }
      })

      test('count each of many increments at once', async () => {
        const sums = await Promise.all(Array.from({ length: 300 }, () => store.increment('n')))
        expect(sums.sort((one, other) => one - other)).toEqual(Array.from({ length: 300 }, (_, number) => number + 1))
      })
    })

    describe('compareAndSwap', () => {
      test('sets or removes a key with the expected value, and nothing else', async () => {
        expect(await store.compareAndSwap('key', 'x', 'y')).toBe(false)
        expect(await store.compareAndSwap('key', undefined, 'a')).toBe(true)
        expect(await store.compareAndSwap('key', undefined, 'b')).toBe(false)
        expect(await store.compareAndSwap('key', 'b', 'c')).toBe(false)
        expect(String(await store.get('key'))).toBe('a')
        expect(await store.compareAndSwap('key', Buffer.from('a'), Buffer.from([0xFF, 0]))).toBe(true)
        expect(await store.compareAndSwap('key', new Uint8Array([0xFF, 0]), '')).toBe(true)
        expect(await store.compareAndSwap('key', undefined, 'x')).toBe(false)
        expect(await store.compareAndSwap('key', '', undefined)).toBe(true)
        expect(await store.has('key')).toBe(false)
        expect(await store.compareAndSwap('key', undefined, undefined)).toBe(true)
      })

      test('lets one of many win', async () => {
        const won = await Promise.all(Array.from({ length: 100 }, (_, number) => store.compareAndSwap('lock', undefined, String(number))))
        expect(won.filter(Boolean)).toHaveLength(1)
        expect(String(await store.get('lock'))).toBe(String(won.indexOf(true)))
      })

      if (isShared) {
        test('and increment lose nothing between worker threads', async () => {
          const [threads, rounds] = [3, 100]
          await store.set('swapped', '0')
          const workers = Array.from({ length: threads }, () => new Worker(`
            const { workerData: { module, source, rounds } } = require('node:worker_threads')
            const { openStore } = require(module)
            openStore(...source).then(async (store) => {
              for (let round = 0; round < rounds; round++) {
                await store.increment('counted')
                for (;;) {
                  const before = String(await store.get('swapped'))
                  if (await store.compareAndSwap('swapped', before, String(Number(before) + 1))) break
                }
              }
              await store.close()
            })`, { eval: true, workerData: { module: require.resolve('../..'), source, rounds } }))
          await Promise.all(workers.map((worker) => once(worker, 'exit')))
          expect(String(await store.get('counted'))).toBe(String(threads * rounds))
          expect(String(await store.get('swapped'))).toBe(String(threads * rounds))
        })
      }
    })

    test('many keys are set, got and deleted at once', async () => {
      expect(await store.setMany(new Map([['a', '1'], ['b', Buffer.from([0xFF])], ['c', '']]))).toBeUndefined()
      const values = await store.getMany(['c', 'none', 'a', 'b', 'a'])
      expect(values.map((value) => value && [...value])).toEqual([[], undefined, [49], [0xFF], [49]])
      expect(await store.deleteMany(new Set(['a', 'none', 'c']))).toBe(2)
      expect(await all(store.keys())).toEqual(['b'])
      await store.setMany([['twice', '1'], ['twice', '2']])
      expect(String(await store.get('twice'))).toBe('2')
      expect([await store.getMany([]), await store.setMany([]), await store.deleteMany([])]).toEqual([[], undefined, 0])
      const entries = Array.from({ length: MANY }, (_, number) => [`many:${number}`, `value ${number}`])
      await store.setMany(entries)
      expect((await store.getMany(entries.map(([key]) => key))).map(String)).toEqual(entries.map(([, value]) => value))
      expect(await store.deleteMany(entries.map(([key]) => key))).toBe(MANY)
    })

    describe('watch', () => {
      const set = (key, value) => tellsValues ? { type: 'set', key, value: Buffer.from(value) } : { type: 'set', key }
      const gone = (key) => ({ type: 'delete', key })
      const take = async (changes, count) => {
        const taken = []
        while (taken.length < count) taken.push((await changes.next()).value)
        return taken
      }

      test('reports changes from then on, in order', async () => {
        await store.set('before', 'x')
        const changes = store.watch()
        const steps = [
          [() => store.set('a', '1'), set('a', '1')],
          [() => store.delete('a'), gone('a')],
          [() => store.delete('none')],
          [() => store.compareAndSwap('a', undefined, '2'), set('a', '2')],
          [() => store.compareAndSwap('a', '1', 'no')],
          [() => store.increment('a', 5), set('a', '7')],
          [() => store.compareAndSwap('a', '7', undefined), gone('a')],
          [() => store.set('end', ''), set('end', '')]
        ]
        const told = []
        for (const [change, ...expected] of steps) {
          await change()
          if (!tellsEach) told.push(...await take(changes, expected.length))
        }
        const expected = steps.flatMap(([, ...expected]) => expected)
        if (tellsEach) told.push(...await take(changes, expected.length))
        expect(told).toEqual(expected)
        await changes.return()
        expect(await changes.next()).toEqual({ done: true, value: undefined })
      })

      test('reports keys with the prefix only', async () => {
        const changes = store.watch('user:')
        await store.setMany([['use', '1'], ['user:1', '2'], ['User:1', '3'], ['user*:', '4']])
        await store.set('user:', '5')
        expect(await take(changes, 2)).toEqual([set('user:1', '2'), set('user:', '5')])
        await changes.return()
      })

      test('reports expired keys', async () => {
        const changes = store.watch()
        const start = Date.now()
        await store.set('short', 'x', { ttlMs: LIFETIME })
        expect(await take(changes, 2)).toEqual([set('short', 'x'), gone('short')])
        expect(Date.now() - start).toBeLessThan(LIFETIME + tellsExpiry)
        await changes.return()
      })

      test('waits for the next change', async () => {
        const changes = store.watch()
        const [first, second] = [changes.next(), changes.next()]
        await sleep(20)
        await store.set('a', '1')
        expect((await first).value).toEqual(set('a', '1'))
        await store.set('b', '2')
        expect((await second).value).toEqual(set('b', '2'))
        await changes.return()
      })

      test('is iterated, and ended by break', async () => {
        const writes = (async () => {
          for (let number = 0; number < 5; number++) {
            await sleep(5)
            await store.set('n', String(number))
          }
        })()
        const seen = []
        for await (const change of store.watch('n')) {
          seen.push(change.type)
          if (seen.length === 3) break
        }
        expect(seen).toEqual(['set', 'set', 'set'])
        await writes
      })

      test('ends with the reason of its signal', async () => {
        const controller = new AbortController()
        const changes = store.watch('', { signal: controller.signal })
        const waiting = changes.next()
        await sleep(10)
        const reason = new Error('enough')
        controller.abort(reason)
        await expect(waiting).rejects.toBe(reason)
        expect(await changes.next()).toEqual({ done: true, value: undefined })
        await expect(store.watch('', { signal: AbortSignal.abort(reason) }).next()).rejects.toBe(reason)
      })

      test('ends when the store is closed', async () => {
        const changes = store.watch()
        const waiting = changes.next()
        await store.set('a', '1')
        await waiting
        const last = changes.next()
        await store.close()
        expect(await last).toEqual({ done: true, value: undefined })
      })

      test('reports once that changes are lost if nobody reads them, and continues', async () => {
        const changes = store.watch('many:')
        for (let round = 0; round < 3; round++) {
          await store.setMany(Array.from({ length: 1_000 }, (_, number) => [`many:${round}:${number}`, '']))
        }
        await sleep(tellsEach ? 100 : 1_000)
        const seen = []
        while (seen.at(-1) !== 'lost') seen.push((await changes.next()).value.type)
        expect(seen.length).toBeLessThanOrEqual(1_100)
        await store.set('many:after', 'x')
        expect(await take(changes, 1)).toEqual([set('many:after', 'x')])
        await changes.return()
      })

      test('of two, each reports', async () => {
        const watches = [store.watch(), store.watch('a')]
        await store.set('a', '1')
        for (const changes of watches) {
          expect(await take(changes, 1)).toEqual([set('a', '1')])
          await changes.return()
        }
      })
    })

    test('a plugin reads it', async () => {
      const plugin = await createPlugin(await guest('many'), { store })
      try {
        await store.set('hello', '👋')
        expect((await plugin.call('read_store', 'hello')).text()).toBe('👋')
        await store.set('hello', Buffer.from([0xFF, 0]))
        expect([...(await plugin.call('read_store', 'hello')).bytes()]).toEqual([0xFF, 0])
        expect((await plugin.call('read_store', 'missing')).byteLength).toBe(0)
        await store.close()
        await expect(plugin.call('read_store', 'hello')).rejects.toEqual(withCode('CLOSED'))
        await expect(plugin.call('read_store', 'hello')).rejects.toThrow(/^CLOSED: /)
      } finally {
        await plugin.close()
      }
    })

    test('a closed store has completed its operations, rejects new ones, and may be closed again', async () => {
      await store.set('key', 'value')
      const late = store.set('late', 'value')
      await store.close()
      await store.close()
      await expect(late).resolves.toBeUndefined()
      const refused = [
        () => store.get('key'), () => store.set('key', 'x'), () => store.delete('key'), () => store.has('key'), () => store.keys().next(),
        () => store.increment('key'), () => store.compareAndSwap('key', 'value', 'x'), () => store.getMany(['key']),
        () => store.setMany([['key', 'x']]), () => store.deleteMany(['key']), () => store.watch().next()
      ]
      for (const call of refused) await expect(call()).rejects.toEqual(withCode('CLOSED'))
    })

    if (isShared) {
      test('opened twice it is the same, and closing one leaves the other open', async () => {
        const other = await openAgain()
        const changes = other.watch()
        // It watches before it does anything else.
        await other.has('x')
        await store.set('key', 'value')
        await until(async () => await other.has('key'))
        expect((await changes.next()).value).toEqual(expect.objectContaining({ type: 'set', key: 'key' }))
        await changes.return()
        await store.close()
        expect(String(await other.get('key'))).toBe('value')
      })
    }

    if (canReopen) {
      test('entries exist when it is opened again', async () => {
        await store.setMany([['a', '1'], ['b', Buffer.from([0xFF])], ['', '']])
        await store.set('short', 'x', { ttlMs: 50 })
        await store.set('long', 'x', { ttlMs: 60_000 })
        await store.close()
        await sleep(60)
        const again = await openAgain()
        expect((await all(again.keys())).sort()).toEqual(['', 'a', 'b', 'long'])
        expect([...await again.get('b')]).toEqual([0xFF])
      })
    }
  })
}

module.exports = { describeStore }
