'use strict'

// Plugins and the server with a store on Redis: what several processes do with it, and what becomes of requests
// when it is away.

const { spawn } = require('node:child_process')
const { once } = require('node:events')
const { setTimeout: sleep } = require('node:timers/promises')
const { openStore } = require('..')
const { ROOT, startServer } = require('./support/processes.js')
const { clusterUrl, startCluster, startRedis } = require('./support/redis.js')
const { list, openStoreGuest } = require('./support/store-guest.js')
const { until } = require('./support/until.js')

jest.setTimeout(120_000)

const AWAY_MS = 10_000

/** Runs a process in which guests count; resolves to what each of them says in the end. */
async function countThroughGuests (url, writers, times) {
  const child = spawn(process.execPath, ['__test__/support/count-through-guests.js', url, writers, times], {
    cwd: ROOT, stdio: ['ignore', 'pipe', 'inherit']
  })
  let output = ''
  child.stdout.on('data', (chunk) => { output += chunk })
  const [code] = await once(child, 'close')
  return { code, results: JSON.parse(output) }
}

/** Sends requests all the time until it is stopped; resolves then to how often each answer was given, and the slowest. */
function load (url, connections) {
  const answers = new Map()
  let slowest = 0
  const stopping = new AbortController()
  const ended = Promise.all(Array.from({ length: connections }, async () => {
    while (!stopping.signal.aborted) {
      const start = performance.now()
      const response = await fetch(url, { method: 'POST', body: 'Jane' })
      const text = await response.text()
      slowest = Math.max(slowest, performance.now() - start)
      const answer = response.status === 200 ? text.split('\n')[1] : `${response.status} ${JSON.parse(text).code}`
      answers.set(answer, (answers.get(answer) ?? 0) + 1)
    }
  }))
  return {
    /** What has been answered since this was asked last. */
    take () {
      const taken = Object.fromEntries(answers)
      answers.clear()
      return taken
    },
    async stop () {
      stopping.abort()
      await ended
      return slowest
    }
  }
}

async function withServer (url, test) {
  const { child, ended, url: address } = await startServer({ STORE_URL: url })
  try {
    await test(address)
  } finally {
    child.kill()
    expect(await ended).toEqual({ code: 0, signal: null })
  }
}

describe('on one server', () => {
  let server
  let store

  beforeEach(async () => {
    server = await startRedis()
    store = await openStore(server.url, { timeoutMs: 10_000 })
  })

  afterEach(async () => {
    await store.close()
    await server.stop()
  })

  test('16 guests in two processes that add 1 to one key 10,000 times each lose nothing', async () => {
    const ends = await Promise.all([countThroughGuests(server.url, 8, 10_000), countThroughGuests(server.url, 8, 10_000)])
    expect(ends).toEqual(Array(2).fill({ code: 0, results: Array(8).fill(0) }))
    expect(String(await store.get('count'))).toBe('160000')
  })

  test('16 guests that compare and swap lose no update', async () => {
    const { plugin, run } = await openStoreGuest({ store: { store, access: 'write' }, instances: 16, eager: true })
    await store.set('list', '')
    await Promise.all(Array.from({ length: 16 }, async (_, writer) => {
      for (let item = 0; item < 10; item++) {
        for (;;) {
          const before = await run('get', 'list')
          const text = before === 0 ? '' : String(before)
          if (await run('compareAndSwap', 'list', text, `${text}${writer}.${item} `, 0) === 1) break
        }
      }
    }))
    const items = String(await store.get('list')).trim().split(' ')
    expect(new Set(items).size).toBe(160)
    await plugin.close()
  })

  test('a guest sees that the store is unavailable, and then available again', async () => {
    const { plugin, run } = await openStoreGuest({ store: { store, access: 'write' } })
    expect(await run('set', 'key', 'value', 0)).toBe(0)
    await server.kill()
    await until(async () => await run('get', 'key') === -3)
    expect(await run('increment', 'n', 1)).toBe(-3)
    await expect(run('hostMemoryGet', 'key')).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' })
    await server.start()
    await until(async () => await run('set', 'key', 'again', 0) === 0)
    expect(String(await run('get', 'key'))).toBe('again')
    expect(plugin.stats().store.failed.STORE_UNAVAILABLE).toBeGreaterThan(2)
    await plugin.close()
  })

  describe('that is silent', () => {
    const OPERATIONS = [
      ['hostMemoryGet', 'key'], ['get', 'key'], ['set', 'key', 'value', 0], ['delete', 'key'], ['exists', 'key'], ['keys', '', '', 0],
      ['increment', 'n', 1], ['compareAndSwap', 'key', -1, 'value', 0], ['getMany', list(['key'])]
    ]
    /** Longer than an interrupted thread may take before it is abandoned. */
    const GRACE_MS = 500
    let plugin
    let run

    const openGuest = async (options) => {
      ({ plugin, run } = await openStoreGuest({ store: { store, access: 'write' }, ...options }))
    }

    /** Expects that no thread hangs, and that the guest goes on when the server does. */
    async function expectThreadsBack (interrupted) {
      await sleep(GRACE_MS)
      expect(plugin.stats()).toMatchObject({ abandonedThreads: 0, replaced: { interrupted, hostFunctionError: 0 } })
      server.resume()
      // On a busy machine a call may still be late.
      await until(() => run('set', 'after', 'value', 0).then((status) => status === 0, () => false))
    }

    afterEach(async () => {
      server.resume()
      await plugin.close()
    })

    test.each(OPERATIONS)('keeps no thread of a guest beyond the deadline: %s', async (...operation) => {
      await openGuest({ timeoutMs: 100 })
      server.suspend()
      await expect(run(...operation)).rejects.toMatchObject({ code: 'TIMEOUT' })
      await expectThreadsBack(1)
      expect(plugin.stats().store.failed).toMatchObject({ CANCELED: 1 })
    })

    test('keeps no thread of a call that is aborted', async () => {
      await openGuest({ instances: OPERATIONS.length, eager: true })
      server.suspend()
      const controller = new AbortController()
      const calls = OPERATIONS.map((operation) => run(...operation, controller.signal))
      await until(() => plugin.stats().busy === OPERATIONS.length)
      await sleep(100)
      const reason = new Error('nobody waits')
      controller.abort(reason)
      for (const call of calls) await expect(call).rejects.toBe(reason)
      await expectThreadsBack(OPERATIONS.length)
    })

    test('keeps no plugin from closing once its calls have ended', async () => {
      await openGuest({ timeoutMs: 100, instances: OPERATIONS.length, eager: true })
      server.suspend()
      const calls = Promise.allSettled(OPERATIONS.map((operation) => run(...operation)))
      await plugin.close()
      for (const { reason } of await calls) expect(reason).toMatchObject({ code: 'TIMEOUT' })
      expect(plugin.stats()).toMatchObject({ abandonedThreads: 0, busy: 0, instances: 0 })
    })

    test('keeps no thread of guests that wait for another to count the keys', async () => {
      ({ plugin, run } = await openStoreGuest({
        store: { store, access: 'write', maxKeys: 5 }, timeoutMs: 1_000, instances: 4, eager: true
      }))
      // Only the count waits: the servers' other answers are remembered.
      await Promise.all(['a', 'b', 'c', 'd'].map((key) => run('get', key)))
      server.suspend()
      const calls = await Promise.allSettled(['a', 'b', 'c', 'd'].map((key) => run('set', key, 'value', 0)))
      for (const { reason } of calls) expect(reason).toMatchObject({ code: 'TIMEOUT' })
      await expectThreadsBack(4)
    })
  })

  test('server.js responds 503 while Redis is stopped for 10 s under load, and then with the current value', async () => {
    await store.setMany([['hello', 'before'], ['message', '']])
    await withServer(server.url, async (url) => {
      const requests = load(url, 8)
      await sleep(500)
      expect(Object.keys(requests.take())).toEqual(['key: hello, value: before'])
      await server.kill()
      await sleep(1_000)
      requests.take()
      await sleep(AWAY_MS - 1_000)
      const away = requests.take()
      expect(Object.keys(away)).toEqual(['503 STORE_UNAVAILABLE'])
      // Refused at once: far more than one for each time limit and connection.
      expect(away['503 STORE_UNAVAILABLE']).toBeGreaterThan(8 * AWAY_MS / 1_000 * 2)
      await server.start()
      await server.command('mset', 'hello', 'after', 'message', '')
      await until(() => requests.take()['key: hello, value: after'] > 0)
      await sleep(1_000)
      expect(Object.keys(requests.take())).toEqual(['key: hello, value: after'])
      await requests.stop()
    })
  })

  test('server.js does not wait for a Redis that is silent for longer than its time limit', async () => {
    await store.setMany([['hello', 'before'], ['message', '']])
    await withServer(server.url, async (url) => {
      const requests = load(url, 8)
      await sleep(500)
      server.suspend()
      await until(() => requests.take()['503 STORE_UNAVAILABLE'] > 0)
      server.resume()
      await server.command('set', 'hello', 'after')
      await until(() => requests.take()['key: hello, value: after'] > 0)
      await sleep(500)
      expect(Object.keys(requests.take())).toEqual(['key: hello, value: after'])
      await requests.stop()
    })
  })

  test('two servers respond with the value that one of them has set', async () => {
    await store.setMany([['hello', '0'], ['message', '']])
    await withServer(server.url, (one) => withServer(server.url, async (two) => {
      const hello = async (url) => (await (await fetch(url, { method: 'POST', body: 'Jane' })).text()).split('\n')[1]
      for (let round = 1; round <= 20; round++) {
        for (const url of [one, two]) expect(await hello(url)).toBe(`key: hello, value: ${round - 1}`)
        await store.set('hello', String(round))
        await until(async () => await hello(one) === `key: hello, value: ${round}` && await hello(two) === `key: hello, value: ${round}`)
      }
    }))
  })
})

describe('on a cluster', () => {
  test('16 guests in two processes that add 1 to one key lose nothing', async () => {
    const servers = await startCluster()
    try {
      const url = clusterUrl(servers)
      const ends = await Promise.all([countThroughGuests(url, 8, 2_000), countThroughGuests(url, 8, 2_000)])
      expect(ends).toEqual(Array(2).fill({ code: 0, results: Array(8).fill(0) }))
      const store = await openStore(url)
      expect(String(await store.get('count'))).toBe('32000')
      await store.close()
    } finally {
      await Promise.all(servers.map((server) => server.stop()))
    }
  })

  test('server.js goes on when a server of the cluster dies and its replica takes over', async () => {
    const servers = await startCluster(1)
    try {
      const store = await openStore(clusterUrl(servers), { timeoutMs: 10_000 })
      await store.setMany([['hello', 'before'], ['message', '']])
      await withServer(clusterUrl(servers), async (url) => {
        const requests = load(url, 8)
        await sleep(500)
        const slot = Number(await servers[0].command('cluster', 'keyslot', 'hello'))
        const lines = (await servers[0].command('cluster', 'nodes')).split('\n')
        const primary = lines.find((line) => /\bmaster\b/.test(line) && line.split(' ').slice(8).some((range) => {
          const [first, last = first] = range.split('-').map(Number)
          return first <= slot && slot <= last
        }))
        const port = Number(/:(\d+)@/.exec(primary)[1])
        await servers.find((server) => server.port === port).kill()
        await until(() => requests.take()['503 STORE_UNAVAILABLE'] > 0)
        await until(() => store.set('hello', 'after').then(() => true, () => false))
        await until(() => requests.take()['key: hello, value: after'] > 0)
        await sleep(500)
        expect(Object.keys(requests.take())).toEqual(['key: hello, value: after'])
        await requests.stop()
      })
      await store.close()
    } finally {
      await Promise.all(servers.map((server) => server.stop()))
    }
  })
})
