'use strict'

// Whether an app is ready whose store on Redis is full.

const { join } = require('node:path')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { openStore } = require('..')
const { ROOT } = require('./support/processes.js')
const { startRedis } = require('./support/redis.js')

test('an app is not ready from the first write that Redis refuses because it is full, until it has space', async () => {
  const redis = await startRedis(['maxmemory-policy noeviction'])
  const store = await openStore(redis.url)
  const app = Fastify()
  app.register(extismHost, {
    plugins: { visits: { source: join(ROOT, 'plugins/visits-rust/visits.wasm'), store: { store, access: 'write' } } },
    routes: [{ url: '/', plugin: 'visits', function: 'visit' }],
    health: true
  })
  const visit = async () => (await app.inject({ method: 'POST', url: '/', payload: 'Jane' })).statusCode
  const ready = async () => (await app.inject('/health/ready')).statusCode
  try {
    await app.ready()
    expect([await visit(), await ready()]).toEqual([200, 200])
    await redis.command('config', 'set', 'maxmemory', '1')
    expect([await visit(), await ready(), await ready()]).toEqual([500, 503, 503])
    await redis.command('config', 'set', 'maxmemory', '0')
    expect([await ready(), await visit(), await ready()]).toEqual([200, 200, 200])
    expect(await redis.command('keys', 'extism-host:*')).toBe('')
  } finally {
    await app.close()
    await store.close()
    await redis.stop()
  }
})
