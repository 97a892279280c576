'use strict'

// Measures several servers on one Redis cluster of three, as behind a load balancer: the throughput of one and of two,
// and the cost for them and Redis if the messages that all of them read change all the time. See README.md.

const { setTimeout: sleep } = require('node:timers/promises')
const { openStore } = require('../index.js')
const { clusterUrl, startCluster } = require('../__test__/support/redis.js')
const { MESSAGES } = require('./support/article.js')
const { fail, requireWrk, startAll, load, cpuSeconds } = require('./support/http.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const SUBJECTS = [
  { name: '1 server', servers: 1, changes: 0 },
  { name: '2 servers', servers: 2, changes: 0 },
  { name: '2 servers, 10 changes a second', servers: 2, changes: 10 },
  { name: '2 servers, 100 changes a second', servers: 2, changes: 100 },
  { name: '2 servers, 1,000 changes a second', servers: 2, changes: 1_000 }
]

/** Sets a message to its current value this many times a second, until it is stopped. */
function change (store, changes) {
  const stopping = new AbortController()
  const [[key, value]] = MESSAGES
  async function run () {
    const start = performance.now()
    for (let done = 0; !stopping.signal.aborted; done++) {
      await store.set(key, value)
      const due = start + (done + 1) / changes * 1e3
      if (due > performance.now()) await sleep(due - performance.now())
    }
  }
  const running = changes > 0 ? run() : undefined
  return async () => {
    stopping.abort()
    await running
  }
}

async function measure ({ servers, changes }, { urls, store, redis, seconds, connections }) {
  const stop = change(store, changes)
  const start = performance.now()
  const sum = (pids) => pids.reduce((seconds, pid) => seconds + cpuSeconds(pid), 0)
  const before = sum(redis)
  const results = await Promise.all(urls.slice(0, servers).map((url) => load(url, seconds, connections / servers)))
  const cores = (sum(redis) - before) / (performance.now() - start) * 1e3
  await stop()
  const total = (key) => results.reduce((total, result) => total + result[key], 0)
  return {
    requestsPerSecond: total('requestsPerSecond'),
    p99: Math.max(...results.map(({ p99 }) => p99)),
    notOk: total('notOk'),
    socketErrors: total('socketErrors'),
    redisPercent: cores * 100
  }
}

function print (title, results) {
  const all = Object.entries(results)
  const rate = (rounds) => medians(rounds).requestsPerSecond
  printTable(title, all.map(([name, rounds]) => ({
    servers: name,
    'requests/s': rate(rounds).toFixed(0),
    '× 1 server': (rate(rounds) / rate(all[0][1])).toFixed(2),
    'p99 ms': medians(rounds).p99.toFixed(2),
    'CPU of Redis, % of a core': medians(rounds).redisPercent.toFixed(1),
    'not 2xx': String(rounds.reduce((total, round) => total + round.notOk + round.socketErrors, 0))
  })))
}

async function main () {
  const options = readOptions({ rounds: 5, seconds: 3, connections: 32 })
  await requireWrk()
  const cluster = await startCluster()
  process.on('exit', () => cluster.forEach((server) => server.kill()))
  const url = clusterUrl(cluster)
  const store = await openStore(url)
  await store.setMany(MESSAGES)
  const server = (name) => ({ name, arguments: ['server.js'], instances: 1, env: { STORE_URL: url } })
  const running = await startAll([server('first'), server('second')], options.connections)
  const redis = await Promise.all(cluster.map(async (server) =>
    Number(/process_id:(\d+)/.exec(await server.command('info', 'server'))[1])))
  const context = { ...options, urls: [...running.values()].map(({ url }) => url), store, redis }

  const results = await alternate(options.rounds, SUBJECTS, (subject) => measure(subject, context))
  print(`${options.connections} connections in all: medians of ${options.rounds} rounds of ${options.seconds} s`, results)
  save(options, results)

  await store.close()
  await Promise.all(cluster.map((server) => server.stop()))
  process.exit()
}

main().catch((error) => fail(error))
