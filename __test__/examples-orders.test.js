'use strict'

// The configuration of examples/orders is served with local servers in place of those of its compose.yaml.

const { execFileSync } = require('node:child_process')
const { cpSync, mkdtempSync, readFileSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { connect: openConnection } = require('@nats-io/transport-node')
const { parse } = require('yaml')
const { startNats } = require('./support/nats.js')
const { startPostgres } = require('./support/postgres.js')
const { ROOT, startServer } = require('./support/processes.js')

jest.setTimeout(120_000)

const EXAMPLE = join(ROOT, 'examples/orders')

let directory
let nats
let postgres
let connection
let server

beforeAll(async () => {
  // As in the container: each file of the repository at its path below the working directory.
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  const { services } = parse(readFileSync(join(EXAMPLE, 'compose.yaml'), 'utf8'))
  for (const [source, target] of services.server.volumes.map((volume) => volume.split(':'))) {
    cpSync(join(EXAMPLE, source), join(directory, target.replace('/app/', '')))
  }
  ;[nats, postgres] = await Promise.all([startNats(), startPostgres()])
  const psql = (...args) => execFileSync('psql', ['-qtA', '-v', 'ON_ERROR_STOP=1', postgres.url, ...args], { env: { ...process.env, ORDERS_PASSWORD: 'secret' } })
  psql('-f', join(EXAMPLE, 'shop.sql'))
  connection = await openConnection({ servers: nats.url })
  connection.subscribe('stock.*', { callback: (error, message) => message.respond(error?.message ?? '12') })
  await connection.flush()
  const url = new URL(postgres.url)
  url.username = 'orders'
  url.password = 'secret'
  server = await startServer({ NATS_URL: nats.url, DATABASE_URL: url.href },
    ['bin/extism-host.js', 'serve', '--config', join(directory, 'extism-host.yaml'), '--host', '127.0.0.1', '--port', '0'])
})
afterAll(async () => {
  server?.child.kill()
  await server?.ended
  await connection?.close()
  await Promise.all([nats?.stop(), postgres?.stop()])
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

test('the plugin sells a product, and tells the broker', async () => {
  const messages = connection.subscribe('orders.*', { max: 1 })
  await connection.flush()
  const response = await fetch(`${server.url}/order`, { method: 'POST', body: '1' })
  const [found, stock, sold, published, refused] = (await response.text()).split('\n')
  expect(JSON.parse(found)).toEqual({ rows: [{ name: 'tea', price: '2.50' }] })
  expect([stock, sold, published]).toEqual(['12', '{"rowCount":1}', '{}'])
  expect(JSON.parse(refused).error.code).toBe('NOT_ALLOWED')
  for await (const message of messages) expect([message.subject, message.string()]).toEqual(['orders.new', found])
})

test('the server is ready, and counts what the plugin does on its connections', async () => {
  expect(await (await fetch(`${server.url}/health/ready`)).json()).toEqual({ status: 'ok', plugins: 'ok', store: 'ok', connections: 'ok' })
  expect(await (await fetch(`${server.url}/metrics`)).text()).toContain('extism_connector_calls_total{plugin="orders",connector="db",operation="execute",outcome="OK"} 1\n')
})
