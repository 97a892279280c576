'use strict'

// The plugins in plugins/orders-*: what guests in several languages do with a database and a broker.

const { execFileSync } = require('node:child_process')
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { connect: openConnection } = require('@nats-io/transport-node')
const { Pool } = require('pg')
const { connect, nats, postgres } = require('../lib/connect.js')
const { startNats } = require('./support/nats.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { startPostgres } = require('./support/postgres.js')
const { ROOT } = require('./support/processes.js')

jest.setTimeout(120_000)

const open = pluginsOfEachTest()

const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
let servers
let connection
let pool
beforeAll(async () => {
  servers = await Promise.all([startNats(), startPostgres()])
  connection = await openConnection({ servers: servers[0].url })
  connection.subscribe('stock.*', { callback: (error, message) => message.respond(error?.message ?? `12 of ${message.subject}`) })
  await connection.flush()
  pool = new Pool({ connectionString: servers[1].url })
})
beforeEach(() => pool.query(`
  DROP TABLE IF EXISTS products;
  CREATE TABLE products (id int PRIMARY KEY, name text, price numeric, sold int DEFAULT 0);
  INSERT INTO products VALUES (1, 'tea "green" 🍵', 2.50)`))
afterAll(async () => {
  await connection?.close()
  await pool?.end()
  await Promise.all(servers.map((server) => server.stop()))
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

function compileAssemblyScript () {
  const wasm = join(directory, 'orders.wasm')
  const source = 'plugins/orders-assemblyscript/orders.ts'
  execFileSync(process.execPath, [
    'node_modules/assemblyscript/bin/asc.js', source, '--use', `abort=${source.replace('.ts', '')}/abort_`, '-o', wasm
  ], { cwd: ROOT, stdio: 'pipe' })
  return wasm
}

test.each([
  ['Go', () => join(ROOT, 'plugins/orders-go/orders.wasm')],
  ['Rust', () => join(ROOT, 'plugins/orders-rust/orders.wasm')],
  ['C', () => join(ROOT, 'plugins/orders-c/orders.wasm')],
  ['AssemblyScript', compileAssemblyScript]
])('a guest in %s queries, changes, publishes and requests', async (language, file) => {
  const messages = connection.subscribe('orders.*', { max: 1 })
  const functions = connect({
    events: nats(connection, { publish: ['orders.*'], request: ['stock.*'] }),
    db: postgres(pool, {
      readOnly: false,
      statements: {
        productById: 'SELECT name, price FROM products WHERE id = $1',
        sell: 'UPDATE products SET sold = sold + 1 WHERE id = $1'
      }
    })
  })
  const plugin = await open(file(), { useWasi: true, functions })
  const [found, stock, sold, published, refused] = (await plugin.call('order', '1')).text().split('\n')
  expect(JSON.parse(found)).toEqual({ rows: [{ name: 'tea "green" 🍵', price: '2.50' }] })
  expect(stock).toBe('12 of stock.1')
  expect([sold, published]).toEqual(['{"rowCount":1}', '{}'])
  expect(refused).toMatch(/^{"error":{"code":"NOT_ALLOWED"/)
  for await (const message of messages) expect([message.subject, message.string()]).toEqual(['orders.new', found])
  expect((await pool.query('SELECT sold FROM products')).rows).toEqual([{ sold: 1 }])
})
