'use strict'

const { mkdtempSync, readFileSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { Worker } = require('node:worker_threads')
const { createPlugin, openStore } = require('..')
const { guest } = require('./support/guest.js')
const { runNode } = require('./support/processes.js')
const { HOST, freePort, makeCertificates, startRedis } = require('./support/redis.js')
const { describeStore } = require('./support/store-suite.js')
const { until } = require('./support/until.js')

jest.setTimeout(60_000)

/** What all stores on Redis have in common. Its servers may be slow on a busy machine. */
const SUITE = { isShared: true, canReopen: true, isOrdered: false, tellsValues: false, tellsEach: false, tellsExpiry: 5_000 }
const PATIENT = { timeoutMs: 10_000 }

const withCode = (code) => expect.objectContaining({ code })

let server
let directory
let certificates

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  certificates = makeCertificates(directory)
  server = await startRedis()
})

afterAll(async () => {
  await server?.stop()
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

describeStore('redis://', async () => {
  await server.command('flushall')
  return [server.url, PATIENT]
}, SUITE)

describe('without a cache', () => {
  describeStore('redis://', async () => {
    await server.command('flushall')
    return [`${server.url}/5`, { ...PATIENT, cacheBytes: 0 }]
  }, SUITE)
})

describe('with TLS', () => {
  let encrypted
  let ca

  beforeAll(async () => {
    ca = readFileSync(certificates.ca, 'utf8')
    encrypted = await startRedis([], certificates)
  })

  afterAll(() => encrypted?.stop())

  describeStore('rediss://', async () => {
    await encrypted.command('flushall')
    return [encrypted.url, { ...PATIENT, ca }]
  }, SUITE)

  test('the certificate must be from an authority that is known, or passed as ca', async () => {
    await expect(openStore(encrypted.url)).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE', message: expect.stringMatching(/certificate/) })
    const others = mkdtempSync(join(tmpdir(), 'extism-host-'))
    try {
      const stranger = readFileSync(makeCertificates(others).ca)
      await expect(openStore(encrypted.url, { ca: stranger })).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
      const store = await openStore(encrypted.url, { ca: Buffer.concat([stranger, Buffer.from(`\n${ca}`)]) })
      expect(await store.has('x')).toBe(false)
      await store.close()
    } finally {
      rmSync(others, { recursive: true })
    }
  })

  test('a server without TLS is rejected with rediss:, and one with TLS with redis:', async () => {
    await expect(openStore(`rediss://${HOST}:${server.port}`, { ca })).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
    await expect(openStore(`redis://${HOST}:${encrypted.port}`)).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
  })
})

describe('openStore', () => {
  test('names the server that does not respond, and never the password', async () => {
    const port = await freePort()
    for (const url of [`redis://user:secret@${HOST}:${port}`, `redis+cluster://:secret@${HOST}:${port}`]) {
      const error = await openStore(url).catch((error) => error)
      expect(error).toMatchObject({ name: 'Error', code: 'STORE_UNAVAILABLE', message: expect.stringContaining(`${HOST}:${port}`) })
      expect(error.message).not.toMatch(/secret/)
    }
    await expect(openStore(`redis+cluster://${HOST}:${server.port}`)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT', message: expect.stringMatching(/not a cluster/)
    })
  })

  test('rejects invalid URLs without quoting them', async () => {
    const refused = [
      ['redis:'], ['redis://'], ['redis://:secret@'], [`redis://:secret@${HOST}/zero`], [`redis://:secret@${HOST}?db=1`],
      [`redis+cluster://:secret@${HOST}:1/1`], [`${server.url}/99`], [server.url, { timeoutMs: 0 }], [server.url, { cacheBytes: -1 }],
      [server.url, { maxBytes: 1_000 }], [server.url, { ca: 'x' }], [`rediss://:secret@${HOST}:1`, { ca: 'x' }], [server.url, { ca: 5 }],
      ['memory:', { timeoutMs: 100 }], ['memory:', { cacheBytes: 100 }], ['memory:', { ca: 'x' }]
    ]
    for (const args of refused) {
      const error = await openStore(...args).catch((error) => error)
      expect(error).toMatchObject({ name: 'TypeError', code: 'INVALID_ARGUMENT' })
      expect(error.message).not.toMatch(/secret/)
    }
  })
})

describe('with users', () => {
  let guarded

  beforeAll(async () => {
    guarded = await startRedis([
      'user default on >secret:@/ ~* &* +@all', 'user reader on >secret ~* &* +@all -client|tracking -set -hello', 'user none on >secret ~none -@all'
    ])
  })

  afterAll(() => guarded?.stop())

  const url = (user) => `redis://${user}@${HOST}:${guarded.port}`

  test('the password must be right', async () => {
    for (const user of ['', ':wrong', 'nobody:secret', 'reader:wrong']) {
      const error = await openStore(user === '' ? guarded.url : url(user)).catch((error) => error)
      expect(error).toMatchObject({ code: 'ACCESS_DENIED', message: expect.stringContaining(`${HOST}:${guarded.port}`) })
      expect(error.message).not.toMatch(/secret|wrong@/)
    }
    const store = await openStore(url(':secret%3A%40%2F'))
    await store.set('key', 'value')
    expect(String(await store.get('key'))).toBe('value')
    await store.close()
  })

  test('a user who may not track keys has no cache and cannot watch, and everything else works', async () => {
    const [store, other] = [await openStore(url('reader:secret')), await openStore(url(':secret%3A%40%2F'))]
    for (let round = 0; round < 20; round++) {
      await other.set('key', String(round))
      expect(String(await store.get('key'))).toBe(String(round))
    }
    await expect(store.set('key', 'value')).rejects.toMatchObject({ code: 'ACCESS_DENIED', message: expect.stringMatching(/set/) })
    await expect(store.watch().next()).rejects.toEqual(withCode('ACCESS_DENIED'))
    await Promise.all([store.close(), other.close()])
  })

  test('a user without permissions gets ACCESS_DENIED for everything', async () => {
    const store = await openStore(url('none:secret')).catch((error) => error)
    if (store instanceof Error) {
      expect(store).toEqual(withCode('ACCESS_DENIED'))
    } else {
      await expect(store.get('key')).rejects.toEqual(withCode('ACCESS_DENIED'))
      await store.close()
    }
  })
})

test('a server of before Redis 6 does, without a cache and without watching', async () => {
  const old = await startRedis(['rename-command HELLO ""', 'rename-command CLIENT ""'])
  try {
    const store = await openStore(old.url)
    await store.set('key', 'value')
    expect(String(await store.get('key'))).toBe('value')
    expect(await store.compareAndSwap('key', 'value', 'again')).toBe(true)
    await expect(store.watch().next()).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
    await store.close()
  } finally {
    await old.stop()
  }
})

test('a server that has no memory left is full, and what it has can be read and removed', async () => {
  const small = await startRedis(['maxmemory 3mb', 'maxmemory-policy noeviction'])
  try {
    const store = await openStore(small.url)
    const fill = async () => {
      for (let number = 0; number < 1_000; number++) await store.set(String(number), Buffer.alloc(10_000))
    }
    await expect(fill()).rejects.toEqual(withCode('STORE_FULL'))
    await expect(store.compareAndSwap('swapped', undefined, 'x')).rejects.toEqual(withCode('STORE_FULL'))
    expect(await store.get('0')).toHaveLength(10_000)
    expect(await store.delete('0')).toBe(true)
    await store.close()
  } finally {
    await small.stop()
  }
})

test('a key of another Redis type is rejected', async () => {
  const store = await openStore(server.url)
  await server.command('del', 'list')
  await server.command('rpush', 'list', 'a')
  for (const call of [() => store.get('list'), () => store.increment('list'), () => store.compareAndSwap('list', 'a', 'b')]) {
    await expect(call()).rejects.toEqual(withCode('INVALID_ARGUMENT'))
  }
  expect(await store.has('list')).toBe(true)
  expect(await store.delete('list')).toBe(true)
  await store.close()
})

describe('the cache', () => {
  let store
  let other

  beforeEach(async () => {
    await server.command('flushall')
    store = await openStore(server.url)
    other = await openStore(server.url)
  })

  afterEach(() => Promise.all([store.close(), other.close()]))

  /** How often the server was asked for a value. */
  const asked = async () => Number(/cmdstat_get:calls=(\d+)/.exec(await server.command('info', 'commandstats'))?.[1] ?? 0)

  test('serves hot keys, also missing ones, and sees changes', async () => {
    await other.set('key', 'one')
    await server.command('config', 'resetstat')
    for (let round = 0; round < 1_000; round++) {
      expect(String(await store.get('key'))).toBe('one')
      expect(await store.get('none')).toBeUndefined()
    }
    expect(await asked()).toBeLessThan(100)
    await other.setMany([['key', 'two'], ['none', 'some']])
    await until(async () => String(await store.get('key')) === 'two' && String(await store.get('none')) === 'some')
    await server.command('flushall')
    await until(async () => await store.get('key') === undefined)
  })

  test('with cacheBytes: 0 is none', async () => {
    const plain = await openStore(server.url, { cacheBytes: 0 })
    await server.command('config', 'resetstat')
    for (let round = 0; round < 50; round++) await plain.get('key')
    expect(await asked()).toBe(50)
    await plain.close()
  })

  test('takes no more than cacheBytes', async () => {
    const small = await openStore(server.url, { cacheBytes: 10_000 })
    await other.setMany(Array.from({ length: 100 }, (_, number) => [String(number), Buffer.alloc(500)]))
    const readAll = async () => {
      for (let number = 0; number < 100; number++) expect(await small.get(String(number))).toHaveLength(500)
    }
    await readAll()
    await server.command('config', 'resetstat')
    await readAll()
    expect(await asked()).toBeGreaterThan(80)
    await small.close()
  })

  test('drops a key when it expires', async () => {
    await other.set('short', 'value', { ttlMs: 300 })
    const start = Date.now()
    let lastHit = start
    for (let asked = start; await store.get('short') !== undefined; asked = Date.now()) lastHit = asked
    expect(lastHit - start).toBeLessThan(300 + 50)
    expect(await other.has('short')).toBe(false)
  })

  test('contains one\'s own writes, for every reader', async () => {
    for (let round = 0; round < 300; round++) {
      const value = String(round)
      const readers = Array.from({ length: 4 }, () => store.get('key'))
      await store.set('key', value)
      expect(String(await store.get('key'))).toBe(value)
      await Promise.all(readers)
      expect(await store.compareAndSwap('key', value, `${value}.`)).toBe(true)
      expect(String(await store.get('key'))).toBe(`${value}.`)
      await store.setMany([['key', 'many']])
      expect(await store.getMany(['key'])).toEqual([Buffer.from('many')])
      expect(await store.delete('key')).toBe(true)
      expect(await store.get('key')).toBeUndefined()
      expect(await store.increment('key')).toBe(1)
      expect(String(await store.get('key'))).toBe('1')
    }
  })

  test('never goes back to an older value than one seen, and soon has the writes of others', async () => {
    const over = new AbortController()
    let newest = 0
    const late = []
    const readers = Array.from({ length: 8 }, async () => {
      while (!over.signal.aborted) {
        const before = newest
        const value = Number(await store.get('counter') ?? 0)
        expect(value).toBeGreaterThanOrEqual(before)
        newest = Math.max(newest, value)
        // What is in the cache is answered at once, and nobody else would get a turn.
        await new Promise((resolve) => setImmediate(resolve))
      }
    })
    for (let round = 1; round <= 300; round++) {
      await other.set('counter', String(round))
      const start = performance.now()
      await until(() => newest >= round)
      late.push(performance.now() - start)
      await sleep(round % 5)
    }
    over.abort()
    await Promise.all(readers)
    late.sort((one, other) => one - other)
    // It is a fraction of a millisecond, where the machine is not busy.
    expect(late[Math.floor(late.length / 2)]).toBeLessThan(50)
  })

  test('has the new value when a watch reports a change', async () => {
    const changes = store.watch('key')
    await store.get('key')
    for (let round = 0; round < 200; round++) {
      await other.set('key', String(round))
      await changes.next()
      expect(Number(await store.get('key'))).toBeGreaterThanOrEqual(round)
    }
    await changes.return()
  })

  test('lets a plugin read a key that another changes', async () => {
    const plugin = await createPlugin(await guest('many'), { store })
    try {
      for (let round = 0; round < 50; round++) {
        await other.set('hello', String(round))
        await until(async () => (await plugin.call('read_store', 'hello'))?.text() === String(round))
      }
      await server.command('config', 'resetstat')
      for (let round = 0; round < 1_000; round++) await plugin.call('read_store', 'hello')
      expect(await asked()).toBeLessThan(100)
    } finally {
      await plugin.close()
    }
  })
})

test('sixteen that swap and increment at once lose nothing', async () => {
  await server.command('flushall')
  const stores = await Promise.all(Array.from({ length: 4 }, () => openStore(server.url, PATIENT)))
  await stores[0].set('swapped', '0')
  await Promise.all(Array.from({ length: 16 }, async (_, writer) => {
    const store = stores[writer % 4]
    for (let round = 0; round < 25; round++) {
      await store.increment('counted')
      for (;;) {
        const before = String(await store.get('swapped'))
        if (await store.compareAndSwap('swapped', before, String(Number(before) + 1))) break
      }
    }
  }))
  expect(await server.command('mget', 'counted', 'swapped')).toBe('400\n400')
  await Promise.all(stores.map((store) => store.close()))
})

describe('when the server is away', () => {
  let own
  let store

  beforeEach(async () => {
    own = await startRedis()
    store = await openStore(own.url)
  })

  afterEach(async () => {
    await store.close()
    await own.stop()
  })

  const CALLS = [
    () => store.get('key'), () => store.set('key', 'x'), () => store.delete('key'), () => store.has('key'), () => store.keys().next(),
    () => store.increment('n'), () => store.compareAndSwap('key', 'x', 'y'), () => store.getMany(['key']), () => store.setMany([['key', 'x']]),
    () => store.deleteMany(['key']), () => store.watch().next()
  ]

  const isBack = () => until(() => store.has('x').then(() => true, () => false))

  test('every operation fails at once, and works again by itself', async () => {
    await own.kill()
    await until(() => store.get('key').then(() => false, ({ code }) => code === 'STORE_UNAVAILABLE'))
    const start = Date.now()
    for (let round = 0; round < 20; round++) {
      for (const call of CALLS) await expect(call()).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
    }
    // Were it the time limit each time, it would be minutes.
    expect(Date.now() - start).toBeLessThan(20_000)
    await own.start()
    await isBack()
    await store.set('key', 'value')
    expect(String(await store.get('key'))).toBe('value')
    expect(await store.compareAndSwap('key', 'value', 'other')).toBe(true)
  })

  test('under load nothing hangs, and afterwards no stale value is read', async () => {
    await store.set('hot', 'old')
    const plugin = await createPlugin(await guest('many'), { store })
    const over = new AbortController()
    const seen = new Map()
    const count = (what) => seen.set(what, (seen.get(what) ?? 0) + 1)
    const load = Array.from({ length: 16 }, async (_, number) => {
      while (!over.signal.aborted) {
        const call = number % 4 === 0 ? plugin.call('read_store', 'hot').then((output) => output?.text()) : store.get('hot').then((value) => value && String(value))
        await call.then(count, ({ code }) => count(code))
        await sleep(1)
      }
    })
    try {
      await until(() => seen.get('old') > 100)
      await own.kill()
      await until(() => seen.get('STORE_UNAVAILABLE') > 100)
      await sleep(10_000)
      await own.start()
      // Nobody may read it as it was before: it has been lost with the server, and then set again.
      await own.command('set', 'hot', 'new')
      seen.clear()
      await until(() => seen.get('new') > 100)
      expect([...seen.keys()].filter((what) => what === 'old')).toEqual([])
    } finally {
      over.abort()
      await Promise.all(load)
      await plugin.close()
    }
  })

  test('a plugin\'s call is rejected with the code', async () => {
    const plugin = await createPlugin(await guest('many'), { store })
    try {
      expect((await plugin.call('read_store', 'key')).byteLength).toBe(0)
      await own.kill()
      await until(() => plugin.call('read_store', 'key').then(() => false, () => true))
      await expect(plugin.call('read_store', 'key')).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
      await expect(plugin.call('read_store', 'key')).rejects.toThrow(/^STORE_UNAVAILABLE: /)
    } finally {
      await plugin.close()
    }
  })

  test('without closing the connection, cached values expire soon', async () => {
    // Who waits for so long has not lost the connection yet.
    const patient = await openStore(own.url, PATIENT)
    await patient.set('key', 'value')
    await patient.get('key')
    own.suspend()
    const suspended = Date.now()
    try {
      let isAnswered = true
      while (isAnswered) {
        const answer = patient.get('key').catch((error) => error)
        isAnswered = await Promise.race([answer.then(() => true), sleep(200).then(() => false)])
        await sleep(5)
      }
      expect(Date.now() - suspended).toBeLessThan(PATIENT.timeoutMs / 2)
    } finally {
      own.resume()
      await patient.close()
    }
  })

  test('without closing the connection, every operation fails at once, after the time limit', async () => {
    await store.set('key', 'value')
    own.suspend()
    try {
      await expect(store.set('key', 'other')).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
      await until(() => store.has('x').then(() => false, ({ message }) => /cannot be reached/.test(message)))
      const start = Date.now()
      for (let round = 0; round < 20; round++) {
        for (const call of CALLS) await expect(call()).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
      }
      expect(Date.now() - start).toBeLessThan(20_000)
    } finally {
      own.resume()
    }
    await isBack()
    // What was not answered in time may have been done.
    expect(['value', 'other']).toContain(String(await store.get('key')))
  })

  test('a watch reports that changes are lost, and then later changes', async () => {
    const changes = store.watch()
    await store.set('before', 'x')
    expect((await changes.next()).value).toEqual({ type: 'set', key: 'before' })
    const next = changes.next()
    await own.kill()
    await own.start()
    expect((await next).value).toEqual({ type: 'lost' })
    await isBack()
    await store.set('after', 'x')
    expect((await changes.next()).value).toEqual({ type: 'set', key: 'after' })
    await changes.return()
  })

  test('a server that has become a replica refuses to be written to', async () => {
    await own.command('replicaof', HOST, String(server.port))
    await expect(store.set('key', 'value')).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE', message: expect.stringMatching(/READONLY/) })
  })
})

describe('an open store', () => {
  test('does not keep the process alive, but a pending operation does', async () => {
    const { code, output } = await runNode(['-e', `
      const { openStore } = require('.')
      openStore('${server.url}').then(async (store) => {
        store.watch()
        await store.set('n', '1')
        store.increment('n').then(console.log)
      })`])
    expect({ code, output }).toEqual({ code: 0, output: '2\n' })
  })

  test('ends with its process, even with pending operations', async () => {
    const { code, signal, errors } = await runNode(['-e', `
      const { openStore } = require('.')
      openStore('${server.url}').then((store) => {
        store.watch().next()
        for (let number = 0; number < 1_000; number++) store.set('key', 'value')
        setTimeout(() => process.exit(7), 20)
      })`])
    expect({ code, signal, errors }).toEqual({ code: 7, signal: null, errors: '' })
  })

  test('ends with its worker thread, even with pending operations', async () => {
    for (let round = 0; round < 5; round++) {
      const worker = new Worker(`
        const { parentPort, workerData } = require('node:worker_threads')
        const { openStore } = require(workerData.module)
        openStore(workerData.url).then(async (store) => {
          store.watch().next()
          parentPort.postMessage('open')
          for (;;) await Promise.all([store.set('key', 'value'), store.get('key'), store.increment('counted')])
        })`, { eval: true, workerData: { module: require.resolve('..'), url: server.url } })
      await new Promise((resolve) => worker.once('message', resolve))
      await sleep(20)
      expect(await worker.terminate()).toBe(1)
    }
    // Its connections end too, as soon as it is collected.
    const store = await openStore(server.url)
    expect(await store.has('key')).toBe(true)
    await store.close()
  })

  test('that is closed has no connections', async () => {
    const store = await openStore(server.url)
    store.watch().next()
    await store.set('key', 'value')
    const count = async () => (await server.command('client', 'list')).split('\n').filter((line) => line.includes('lib-name=extism-host') || line.includes('resp=3')).length
    const before = await count()
    await store.close()
    await until(async () => await count() <= before - 2)
  })
})
