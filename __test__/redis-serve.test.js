'use strict'

// `extism-host serve` and `server.js` whose store on Redis is away when they start.

const { spawn } = require('node:child_process')
const { once } = require('node:events')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { ROOT } = require('./support/processes.js')
const { freePort, HOST, startRedis } = require('./support/redis.js')
const { until } = require('./support/until.js')

jest.setTimeout(120_000)

let directory
let child
let log
let ended

beforeEach(() => { directory = mkdtempSync(join(tmpdir(), 'extism-host-redis-serve-')) })

afterEach(async () => {
  child.kill('SIGKILL')
  await ended
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

function serve (url, startTimeoutMs, more) {
  const config = join(directory, 'config.json')
  writeFileSync(config, JSON.stringify({
    server: { port: 0 }, store: { url, startTimeoutMs, ...more }, plugins: { visits: { wasm: join(ROOT, 'plugins/visits-rust/visits.wasm'), store: { access: 'write' } } }, routes: [{ url: '/visits', plugin: 'visits', function: 'visit' }], health: true
  }))
  start(['bin/extism-host.js', 'serve', '--config', config])
}

function start (args, env) {
  child = spawn(process.execPath, args, { cwd: ROOT, env: { ...process.env, ...env } })
  log = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => { log += chunk })
  ended = once(child, 'close').then(([code, signal]) => ({ code, signal }))
}

/** Resolves when the server has written this, to the groups of the match. */
async function written (pattern) {
  while (!pattern.test(log)) await Promise.race([once(child.stdout, 'data'), once(child.stderr, 'data'), ended.then(() => { throw new Error(log) })])
  return pattern.exec(log)
}

test('it waits for the store, and is ready once it is there', async () => {
  const redis = await startRedis()
  await redis.kill()
  serve(redis.url, 60_000)
  await written(/waiting for the store: .*refused(.|\n)*waiting for the store/)
  expect(log).not.toContain('Server listening')
  await redis.start()
  const [, url] = await written(/Server listening at (http:[^"]+)/)
  expect((await fetch(`${url}/health/ready`)).status).toBe(200)
  await redis.stop()
})

test.each([
  ['a server', 'redis', undefined],
  ['a cluster', 'redis+cluster', 'cluster']
])('it starts without %s that is not required, and is ready once that is available', async (_, scheme, mode) => {
  const redis = await startRedis(mode === 'cluster' ? ['cluster-enabled yes'] : [])
  await redis.kill()
  serve(redis.url.replace('redis:', `${scheme}:`), 60_000, { required: false })
  const [, url] = await written(/Server listening at (http:[^"]+)/)
  const visit = async () => (await fetch(`${url}/visits`, { method: 'POST', body: 'Jane' })).status
  const ready = async () => (await fetch(`${url}/health/ready`)).status
  // The guest is told, and says so itself.
  expect([await ready(), await visit()]).toEqual([503, 500])
  await redis.start()
  if (mode === 'cluster') await redis.command('cluster', 'addslotsrange', '0', '16383')
  await until(async () => await ready() === 200)
  expect(await visit()).toBe(200)
  await redis.stop()
})

test('server.js waits for the store, too', async () => {
  const redis = await startRedis()
  await redis.kill()
  start(['server.js'], { STORE_URL: redis.url, PORT: '0', HOST })
  await written(/waiting for the store: .*refused/)
  await redis.start()
  const [, url] = await written(/Server listening at (http:[^"]+)/)
  await redis.command('set', 'hello', 'from Redis')
  const response = await fetch(url, { method: 'POST', body: 'Jane Doe' })
  expect(await response.text()).toContain('key: hello, value: from Redis')
  await redis.stop()
})

test('it gives up in the end, with 1', async () => {
  serve(`redis://${HOST}:${await freePort()}`, 300)
  expect(await ended).toEqual({ code: 1, signal: null })
  expect(log).toMatch(/waiting for the store(.|\n)*\nextism-host: STORE_UNAVAILABLE: the Redis server .* cannot be reached/)
})

test('it ends at once on SIGTERM while it waits', async () => {
  serve(`redis://${HOST}:${await freePort()}`, 60_000)
  await written(/waiting for the store/)
  child.kill('SIGTERM')
  expect(await ended).toEqual({ code: 0, signal: null })
})
