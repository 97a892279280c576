'use strict'

const { MemoryStore } = require('..')
const { guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

describe('a MemoryStore works like a Map', () => {
  test('it is filled by its constructor, and by set, which can be chained', () => {
    const store = new MemoryStore([['a', '1'], ['b', '2']])
    expect(store.set('c', '3').set('d', '4')).toBe(store)
    expect(store.size).toBe(4)
    expect([...store]).toEqual([['a', '1'], ['b', '2'], ['c', '3'], ['d', '4']])
    expect(new MemoryStore(new Map([['x', 'y']])).get('x')).toBe('y')
    expect(new MemoryStore().size).toBe(0)
    expect(new MemoryStore(null).size).toBe(0)
  })

  test('get returns a string if a string was set, and a new Buffer if bytes were', () => {
    const bytes = new Uint8Array([1, 2, 0xFF])
    const store = new MemoryStore([['text', 'I 💜 Extism'], ['bytes', bytes], ['empty', ''], ['nul', 'a\0b']])
    bytes[0] = 9
    expect(store.get('text')).toBe('I 💜 Extism')
    expect(store.get('bytes')).toEqual(Buffer.from([1, 2, 0xFF]))
    store.get('bytes')[0] = 7
    expect(store.get('bytes')[0]).toBe(1)
    expect(store.get('empty')).toBe('')
    expect(store.get('nul')).toBe('a\0b')
    expect(store.get('nothing')).toBeUndefined()
  })

  test('has, delete and clear', () => {
    const store = new MemoryStore([['a', '1'], ['b', '2'], ['', 'empty key']])
    expect([store.has('a'), store.has('x'), store.has('')]).toEqual([true, false, true])
    expect([store.delete('a'), store.delete('a')]).toEqual([true, false])
    expect(store.size).toBe(2)
    store.clear()
    expect([store.size, store.has('b')]).toEqual([0, false])
  })

  test('iteration follows insertion, and a key that is set again keeps its place', () => {
    const store = new MemoryStore([['c', '1'], ['a', '2'], ['b', '3']])
    store.set('c', 'again')
    store.delete('a')
    store.set('a', 'last')
    expect([...store.keys()]).toEqual(['c', 'b', 'a'])
    expect([...store.values()]).toEqual(['again', '3', 'last'])
    expect([...store.entries()]).toEqual([...store])
    const seen = []
    store.forEach(function (value, key, self) { seen.push([this.name, key, value, self === store]) }, { name: 'this' })
    expect(seen[0]).toEqual(['this', 'c', 'again', true])
  })

  test('a key that is deleted during an iteration is left out', () => {
    const store = new MemoryStore([['a', '1'], ['b', '2'], ['c', '3']])
    const seen = []
    for (const [key] of store) {
      seen.push(key)
      store.delete('b')
    }
    expect(seen).toEqual(['a', 'c'])
  })

  test('keys that are names of an object\'s own properties are keys like others', () => {
    const store = new MemoryStore([['__proto__', 'p'], ['constructor', 'c']])
    expect([store.get('__proto__'), store.get('constructor'), store.get('toString')]).toEqual(['p', 'c', undefined])
  })

  test('invalid keys and values are rejected, and nothing is lost', () => {
    const store = new MemoryStore([['key', 'value']])
    const refused = [
      () => store.set(1, 'x'),
      () => store.set('key', 1),
      () => store.set('key', undefined),
      () => store.set('key', { an: 'object' }),
      () => store.set('\uD800', 'x'),
      () => store.set('key', '\uD800'),
      () => store.get(1),
      () => store.has(undefined),
      () => store.delete(null),
      () => new MemoryStore('ab'),
      () => new MemoryStore(5),
      () => new MemoryStore(['ab'])
    ]
    for (const call of refused) {
      expect(call).toThrow(expect.objectContaining({ name: 'TypeError', code: 'INVALID_ARGUMENT' }))
    }
    expect([...store]).toEqual([['key', 'value']])
  })
})

describe('hostMemoryGet', () => {
  let wasm

  const open = pluginsOfEachTest()
  const start = (options) => open(wasm, options)

  beforeAll(async () => { wasm = await guest('many') })

  for (const name of ['read_store', 'read_store_by_env']) {
    test(`${name} reads what JavaScript has set, at the next call`, async () => {
      const store = new MemoryStore([['hello', '👋']])
      const plugin = await start({ store })
      expect((await plugin.call(name, 'hello')).text()).toBe('👋')
      store.set('hello', 'changed')
      expect((await plugin.call(name, 'hello')).text()).toBe('changed')
      store.set('hello', Buffer.from([0xFF, 0]))
      expect([...(await plugin.call(name, 'hello')).bytes()]).toEqual([0xFF, 0])
      store.delete('hello')
      expect((await plugin.call(name, 'hello')).byteLength).toBe(0)
    })
  }

  test('a missing key, a key that is not UTF-8 and an empty value give offset 0', async () => {
    const plugin = await start({ store: new MemoryStore([['empty', ''], ['\uFFFD', 'replacement']]) })
    for (const key of ['missing', new Uint8Array([0xFF]), 'empty']) {
      expect((await plugin.call('read_store', key)).byteLength).toBe(0)
    }
  })

  test('one store serves several plugins, and a plugin without one has an empty one', async () => {
    const store = new MemoryStore()
    const [first, second, without] = await Promise.all([start({ store }), start({ store, instances: 2 }), start()])
    store.set('key', 'seen by both')
    expect((await first.call('read_store', 'key')).text()).toBe('seen by both')
    expect((await second.call('read_store', 'key')).text()).toBe('seen by both')
    expect((await without.call('read_store', 'key')).byteLength).toBe(0)
  })

  test('a value of 1 MiB arrives whole', async () => {
    const value = Buffer.alloc(1 << 20, '0123456789')
    const plugin = await start({ store: new MemoryStore([['large', value]]) })
    expect(Buffer.from((await plugin.call('read_store', 'large')).bytes()).equals(value)).toBe(true)
  })
})

describe('a named store', () => {
  test('is the same for each use of its name, and different from those of other names', () => {
    const store = MemoryStore.named('messages').set('a', '1')
    expect(store).toBeInstanceOf(MemoryStore)
    expect(MemoryStore.named('messages').get('a')).toBe('1')
    expect(MemoryStore.named('others').size).toBe(0)
    expect(() => MemoryStore.named()).toThrow(TypeError)
    expect(() => MemoryStore.named('')).toThrow(TypeError)
  })

  test('is shared by worker threads, and read by their plugins', async () => {
    const { Worker } = require('node:worker_threads')
    const store = MemoryStore.named('of all threads')
    const worker = new Worker(`
      const { parentPort, workerData } = require('node:worker_threads')
      const { createPlugin, MemoryStore } = require(workerData.module)
      const store = MemoryStore.named('of all threads')
      createPlugin(workerData.wasm, { store }).then((plugin) => {
        store.set('from the worker', 'hello')
        parentPort.on('message', async (key) => {
          if (key === null) return process.exit()
          parentPort.postMessage((await plugin.call('read_store', key))?.text() ?? null)
        })
        parentPort.postMessage('ready')
      })`, { eval: true, workerData: { module: require.resolve('..'), wasm: await guest('many') } })
    const answer = () => new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
    try {
      expect(await answer()).toBe('ready')
      expect(store.get('from the worker')).toBe('hello')
      for (const value of ['first', 'second']) {
        store.set('key', value)
        worker.postMessage('key')
        expect(await answer()).toBe(value)
      }
    } finally {
      await worker.terminate()
    }
  })
})
