'use strict'

const { mkdtempSync, readFileSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { openStore } = require('..')
const { clusterUrl, makeCertificates, startCluster } = require('./support/redis.js')
const { describeStore } = require('./support/store-suite.js')
const { until } = require('./support/until.js')

jest.setTimeout(120_000)

const PATIENT = { timeoutMs: 10_000 }

/** Keys of all slots, about. */
const KEYS = Array.from({ length: 60 }, (_, number) => `key:${number}`)

const withCode = (code) => expect.objectContaining({ code })

describe('of three servers', () => {
  let servers = []

  beforeAll(async () => {
    servers = await startCluster()
  })

  afterAll(() => Promise.all(servers.map((server) => server.stop())))

  const empty = () => Promise.all(servers.map((server) => server.command('flushall')))

  const open = async () => {
    await empty()
    return [clusterUrl(servers), PATIENT]
  }

  describeStore('redis+cluster://', open, {
    isShared: true, canReopen: true, isOrdered: false, tellsValues: false, tellsEach: false, tellsExpiry: 5_000
  })

  test('one server is enough to find the others', async () => {
    await empty()
    const store = await openStore(clusterUrl(servers.slice(0, 1)))
    await store.setMany(KEYS.map((key) => [key, key]))
    for (const server of servers) expect(Number(await server.command('dbsize'))).toBeGreaterThan(0)
    expect((await store.getMany(KEYS)).map(String)).toEqual(KEYS)
    await store.close()
  })

  test('the cache serves hot keys of all servers, and sees changes', async () => {
    const [store, other] = [await openStore(...await open()), await openStore(...await open())]
    await other.setMany(KEYS.map((key) => [key, 'one']))
    await Promise.all(servers.map((server) => server.command('config', 'resetstat')))
    for (let round = 0; round < 50; round++) await store.getMany(KEYS)
    for (const server of servers) {
      const info = await server.command('info', 'commandstats')
      expect(Number(/cmdstat_get:calls=(\d+)/.exec(info)[1])).toBeLessThan(KEYS.length * 3)
    }
    await other.setMany(KEYS.map((key) => [key, 'two']))
    await until(async () => (await store.getMany(KEYS)).every((value) => String(value) === 'two'))
    await Promise.all([store.close(), other.close()])
  })

  test('slots move to another server while keys are read and written, and nothing is lost', async () => {
    const store = await openStore(...await open())
    const keys = Array.from({ length: 20 }, (_, number) => `{moving}${number}`)
    const slot = await servers[0].command('cluster', 'keyslot', '{moving}')
    const answers = await Promise.all(servers.map((server) => server.command('set', '{moving}', 'x')))
    const source = servers[answers.indexOf('OK')]
    const target = servers.find((server) => server !== source)
    const [sourceId, targetId] = await Promise.all([source, target].map((server) => server.command('cluster', 'myid')))
    const over = new AbortController()
    let count = 0
    const writer = (async () => {
      while (!over.signal.aborted) {
        for (const key of keys) expect(await store.increment(key)).toBe(count + 1)
        count++
        expect((await store.getMany(keys)).map(Number)).toEqual(keys.map(() => count))
        await new Promise((resolve) => setImmediate(resolve))
      }
    })()
    await until(() => count > 3)
    await target.command('cluster', 'setslot', slot, 'importing', sourceId)
    await source.command('cluster', 'setslot', slot, 'migrating', targetId)
    for (const key of ['{moving}', ...keys]) {
      await source.command('migrate', '127.0.0.1', String(target.port), key, '0', '5000')
      await sleep(5)
    }
    for (const server of [target, source, ...servers]) await server.command('cluster', 'setslot', slot, 'node', targetId)
    const before = count
    await until(() => count > before + 3)
    over.abort()
    await writer
    await store.close()
  })
})

test('with TLS it is the same', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  let servers = []
  try {
    const certificates = makeCertificates(directory)
    servers = await startCluster(0, certificates)
    const store = await openStore(clusterUrl(servers, 'rediss+cluster'), { ...PATIENT, ca: readFileSync(certificates.ca) })
    await store.setMany(KEYS.map((key) => [key, key]))
    expect((await store.getMany(KEYS)).map(String)).toEqual(KEYS)
    for (const server of servers) expect(Number(await server.command('dbsize'))).toBeGreaterThan(0)
    await store.close()
  } finally {
    await Promise.all(servers.map((server) => server.stop()))
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
})

describe('with replicas', () => {
  let servers = []

  beforeAll(async () => {
    servers = await startCluster(1)
  })

  afterAll(() => Promise.all(servers.map((server) => server.stop())))

  test('when a server dies, another takes over under load, and no stale value is read', async () => {
    const [store, other] = [await openStore(clusterUrl(servers)), await openStore(clusterUrl(servers))]
    const changes = store.watch()
    await store.setMany(KEYS.map((key) => [key, '0']))
    await until(async () => (await changes.next()).value.type === 'set')
    const over = new AbortController()
    /** Of each key the newest that was acknowledged, and seen. */
    const newest = new Map(KEYS.map((key) => [key, 0]))
    let failures = 0
    const readers = Array.from({ length: 4 }, async () => {
      while (!over.signal.aborted) {
        for (const key of KEYS) await store.get(key).catch(() => { failures++ })
        await sleep(1)
      }
    })
    const write = async (round) => {
      for (const key of KEYS) {
        await other.set(key, String(round))
        newest.set(key, round)
      }
    }
    await write(1)
    // So that the replicas have it: what is acknowledged may be lost otherwise.
    for (const server of servers.slice(0, 3)) await until(async () => await lag(server) === 0)
    await servers[0].kill()
    await expect((async () => {
      for (;;) await write(2)
    })()).rejects.toEqual(withCode('STORE_UNAVAILABLE'))
    await until(() => write(3).then(() => true, (error) => {
      expect(error).toEqual(withCode('STORE_UNAVAILABLE'))
      return false
    }), 60_000)
    // Whoever has the keys now, and whatever was cached of them before.
    await until(() => Promise.all(KEYS.map((key) => store.get(key)))
      .then((values) => values.every((value) => String(value) === '3'), () => false))
    await write(4)
    await until(async () => (await store.getMany(KEYS)).every((value) => String(value) === '4'))
    for (let round = 0; round < 50; round++) {
      expect((await store.getMany(KEYS)).map(String)).toEqual(KEYS.map(() => '4'))
    }
    expect(failures).toBeGreaterThan(0)
    over.abort()
    await Promise.all(readers)
    let change
    do change = (await changes.next()).value.type
    while (change !== 'lost')
    await changes.return()
    await Promise.all([store.close(), other.close()])
  })

  test('when a server hands over to its replica, its cached values are dropped', async () => {
    const [store, other] = [await openStore(clusterUrl(servers)), await openStore(clusterUrl(servers))]
    const replicas = await Promise.all(servers.slice(3).map(async (server) => [server, await server.command('info', 'replication')]))
    const [replica] = replicas.find(([, info]) => info.includes(`master_port:${servers[1].port}`))
    await other.setMany(KEYS.map((key) => [key, 'before']))
    for (let round = 0; round < 3; round++) expect((await store.getMany(KEYS)).map(String)).toEqual(KEYS.map(() => 'before'))
    await replica.command('cluster', 'failover')
    await until(async () => /role:slave/.test(await servers[1].command('info', 'replication')))
    await until(() => other.setMany(KEYS.map((key) => [key, 'after'])).then(() => true, () => false))
    // Of what its old server would tell it hears late, or never.
    await until(() => store.getMany(KEYS).then((values) => values.every((value) => String(value) === 'after'), () => false))
    for (let round = 0; round < 50; round++) expect((await store.getMany(KEYS)).map(String)).toEqual(KEYS.map(() => 'after'))
    await Promise.all([store.close(), other.close()])
  })
})

/** How many bytes the replica of a server is behind. */
async function lag (server) {
  const info = await server.command('info', 'replication')
  const behind = /offset=(\d+)/.exec(info)
  return behind === null ? Infinity : Number(/master_repl_offset:(\d+)/.exec(info)[1]) - Number(behind[1])
}
