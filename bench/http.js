'use strict'

// Measures throughput and latency of servers with the article's plugin: without a plugin, with the JavaScript SDK in
// the foreground and in a worker, and with ours. See README.md.

const { availableParallelism } = require('node:os')
const { fail, requireWrk, startAll, load } = require('./support/http.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const INSTANCES = availableParallelism()

const BARE = 'Fastify, no plugin'
const FOREGROUND = 'JavaScript SDK, foreground'
const WORKER = 'JavaScript SDK, worker, one call at a time'
const SERVERS = [
  { name: BARE, arguments: ['bench/servers/bare.js'], isConstant: true },
  { name: FOREGROUND, arguments: ['bench/servers/sdk.js'] },
  { name: WORKER, arguments: ['bench/servers/sdk.js', 'worker'] },
  { name: `extism-host, ${INSTANCES} instances`, arguments: ['server.js'], instances: INSTANCES }
]
const ISOLATED = [
  { name: 'extism-host, isolation: call, snapshot', arguments: ['bench/servers/isolated.js', 'snapshot'], instances: INSTANCES },
  { name: 'extism-host, isolation: call', arguments: ['bench/servers/isolated.js'], instances: INSTANCES }
]

function print (title, results) {
  const all = Object.entries(results).map(([name, rounds]) => ({
    name,
    median: medians(rounds),
    notOk: rounds.reduce((sum, round) => sum + round.notOk, 0),
    socketErrors: rounds.reduce((sum, round) => sum + round.socketErrors, 0)
  }))
  const rate = (name) => all.find((server) => server.name === name).median.requestsPerSecond
  printTable(title, all.map(({ name, median, notOk, socketErrors }) => ({
    server: name,
    'requests/s': median.requestsPerSecond.toFixed(0),
    'p50 ms': median.p50.toFixed(2),
    'p99 ms': median.p99.toFixed(2),
    'not 2xx': String(notOk),
    'socket errors': String(socketErrors),
    '× SDK foreground': (median.requestsPerSecond / rate(FOREGROUND)).toFixed(2),
    '× no plugin': (median.requestsPerSecond / rate(BARE)).toFixed(2)
  })))
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 3, connections: 32, 'half-load': false, isolation: false })
  const { rounds, seconds, connections } = options
  await requireWrk()
  const servers = options.isolation ? [...SERVERS, ...ISOLATED] : SERVERS
  const running = await startAll(servers, connections)

  const full = await alternate(rounds, servers, ({ name }) => load(running.get(name).url, seconds, connections))
  print(`HTTP, ${connections} connections: medians of ${rounds} rounds of ${seconds} s`, full)

  let half
  if (options['half-load']) {
    const target = medians(full[FOREGROUND]).requestsPerSecond / 2
    // More connections, so that the pause is long compared to wrk's resolution of 1 ms and to the latency.
    const many = 4 * connections
    // Without the worker: half of the foreground's load is far more than it can handle.
    half = await alternate(rounds, SERVERS.filter(({ name }) => name !== WORKER),
      ({ name }) => load(running.get(name).url, seconds, many, many / target * 1e3))
    print(`HTTP, ${many} connections that pause, for half of the SDK foreground's load`, half)
  }

  save(options, { full, half })
  process.exit()
}

main().catch((error) => fail(error))
