'use strict'

// Measures statements of a plugin on PostgreSQL beside the same statements by `pg` alone. See README.md.

const { readFileSync } = require('node:fs')
const { Pool } = require('pg')
const { createPlugin } = require('../index.js')
const { connect, postgres } = require('../lib/connect.js')
const { guest } = require('../__test__/support/guest.js')
const { startPostgres } = require('../__test__/support/postgres.js')
const { alternate, median, medians, printTable, readOptions, save } = require('./support/measure.js')

const ROWS = 1_000

const STATEMENTS = {
  'a row by its key': { text: 'SELECT id, name FROM users WHERE id = $1', param: () => 1 + Math.floor(Math.random() * ROWS) },
  '20 rows by an index, sorted': { text: 'SELECT id, name, created FROM users WHERE team = $1 ORDER BY name', param: () => Math.floor(Math.random() * 50) },
  'a count over all rows': { text: 'SELECT team, count(*) FILTER (WHERE name LIKE $1)::int FROM users GROUP BY team ORDER BY team LIMIT 5', param: () => 'a%' },
  'an update': { text: 'UPDATE users SET visits = visits + 1 WHERE id = $1', param: () => 1 + Math.floor(Math.random() * ROWS), writes: true }
}

const PLAIN = 'pg'
const TRANSACTION = 'pg, a transaction for each'
const PLUGIN = 'a plugin'

const toJson = ({ rows, rowCount }, writes) => JSON.stringify(writes ? { rowCount } : { rows })

/** The subjects. For one statement, all give the same JSON. */
function subjectsFor (pool, plugin, { text, param, writes }) {
  const begin = writes ? 'BEGIN' : 'BEGIN READ ONLY'
  const request = (value) => JSON.stringify({ connection: writes ? 'write' : 'read', statement: text, params: [value] })
  return [
    { name: PLAIN, run: async () => toJson(await pool.query(text, [param()]), writes) },
    {
      name: TRANSACTION,
      async run () {
        const client = await pool.connect()
        await client.query(begin)
        const result = await client.query(text, [param()])
        await client.query('COMMIT')
        client.release()
        return toJson(result, writes)
      }
    },
    { name: PLUGIN, run: async () => (await plugin.call(writes ? 'execute' : 'query', request(param()))).text() }
  ]
}

/** The CPU time of the server's processes in microseconds. Linux only. */
function cpuOf (pids) {
  let ticks = 0
  for (const pid of pids) {
    const [user, system] = readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1].split(' ').slice(11, 13)
    ticks += Number(user) + Number(system)
  }
  return ticks * 10_000
}

async function measure ({ run }, pids, { seconds, calls }) {
  let count = 0
  const start = performance.now()
  const cpu = process.cpuUsage()
  const serverCpu = cpuOf(pids)
  const end = start + seconds * 1e3
  await Promise.all(Array.from({ length: calls }, async () => {
    while (performance.now() < end) {
      await run()
      count++
    }
  }))
  const { user, system } = process.cpuUsage(cpu)
  const microseconds = (user + system) / count
  return {
    rate: count / (performance.now() - start) * 1e3,
    microseconds,
    withServer: microseconds + (cpuOf(pids) - serverCpu) / count
  }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 1, calls: 32, instances: 16, connections: 10 })
  const { rounds, instances, connections } = options
  const server = await startPostgres()
  const pool = new Pool({ connectionString: server.url, max: connections, idleTimeoutMillis: 0 })
  await pool.query(`
    CREATE TABLE users (id int PRIMARY KEY, name text, team int, created date DEFAULT '2026-11-26', visits int DEFAULT 0);
    INSERT INTO users SELECT i, md5(i::text), i % 50 FROM generate_series(1, ${ROWS}) i;
    CREATE INDEX ON users (team)`)
  await pool.query('VACUUM ANALYZE users')
  const byText = (wanted) => Object.fromEntries(Object.values(STATEMENTS).filter(({ writes = false }) => writes === wanted).map(({ text }) => [text, text]))
  const plugin = await createPlugin(await guest('connected'), {
    instances,
    eager: true,
    functions: connect({
      read: postgres(pool, { statements: byText(false) }),
      write: postgres(pool, { statements: byText(true), readOnly: false })
    }, { onError: console.error })
  })
  // All connections, which stay open.
  const clients = await Promise.all(Array.from({ length: connections }, () => pool.connect()))
  const pids = clients.map(({ processID }) => processID)
  for (const client of clients) client.release()
  const results = {}
  for (const [name, statement] of Object.entries(STATEMENTS)) {
    const subjects = subjectsFor(pool, plugin, statement)
    const measured = await alternate(rounds, subjects, (subject) => measure(subject, pids, options))
    results[name] = measured
    // Other load changes from round to round, so each result is divided by that of its own round.
    const ratio = (subject, key) => median(measured[subject].map((result, round) => result[key] / measured[PLAIN][round][key]))
    printTable(`${name}: medians of ${rounds} rounds`, subjects.map(({ name }) => ({
      '': name,
      'statements/s': medians(measured[name]).rate.toFixed(0),
      '÷ pg': ratio(name, 'rate').toFixed(2),
      'CPU µs of Node': medians(measured[name]).microseconds.toFixed(0),
      'and of PostgreSQL': medians(measured[name]).withServer.toFixed(0),
      'pg ÷ that': (1 / ratio(name, 'withServer')).toFixed(2)
    })))
  }
  await plugin.close()
  await pool.end()
  await server.stop()
  save(options, results)
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
