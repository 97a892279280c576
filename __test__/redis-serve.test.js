'use strict'

// `extism-host serve` whose store on Redis is away when it starts.

const { spawn } = require('node:child_process')
const { once } = require('node:events')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { ROOT } = require('./support/processes.js')
const { freePort, HOST, startRedis } = require('./support/redis.js')

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

function serve (url, startTimeoutMs) {
  const config = join(directory, 'config.json')
  writeFileSync(config, JSON.stringify({
    server: { port: 0 }, store: { url, startTimeoutMs }, plugins: { visits: { wasm: join(ROOT, 'plugins/visits-rust/visits.wasm') } }, health: true
  }))
  child = spawn(process.execPath, ['bin/extism-host.js', 'serve', '--config', config], { cwd: ROOT })
  log = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => { log += chunk })
  ended = once(child, 'close').then(([code, signal]) => ({ code, signal }))
}

/** Resolves when the server has written this, to the groups of the match. */
async function written (pattern) {
  while (!pattern.test(log)) await Promise.race([once(child.stdout, 'data'), ended.then(() => { throw new Error(log) })])
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
