'use strict'

// Measures the requests per second of the article's server with its messages in memory, in a file, on a Redis server and
// on a Redis cluster. The two messages are hot keys, read by `hostMemoryGet`. See README.md.

const { availableParallelism } = require('node:os')
const { join } = require('node:path')
const { openStore } = require('../index.js')
const { clusterUrl, startCluster, startRedis } = require('../__test__/support/redis.js')
const { MESSAGES } = require('./support/article.js')
const { temporaryDirectory } = require('./support/children.js')
const { fail, requireWrk, startAll, load } = require('./support/http.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const MEMORY = 'memory'

async function fill (url) {
  const store = await openStore(url)
  await store.setMany(MESSAGES)
  await store.close()
}

/** The servers, each with the URL of a store that contains the messages. */
async function servers (redis, cluster) {
  const urls = {
    'redb, a file': `redb:${join(temporaryDirectory(), 'data.redb')}`,
    'Redis, one server': redis.url,
    'Redis, a cluster of three': clusterUrl(cluster)
  }
  for (const url of Object.values(urls)) await fill(url)
  const instances = availableParallelism()
  return [
    { name: MEMORY, arguments: ['server.js'], instances },
    ...Object.entries(urls).map(([name, url]) => ({ name, arguments: ['server.js'], instances, env: { STORE_URL: url } }))
  ]
}

function print (title, results) {
  const rate = (name) => medians(results[name]).requestsPerSecond
  const sum = (name, key) => String(results[name].reduce((total, round) => total + round[key], 0))
  printTable(title, Object.keys(results).map((name) => {
    const { p50, p99 } = medians(results[name])
    return {
      store: name,
      'requests/s': rate(name).toFixed(0),
      '× memory': (rate(name) / rate(MEMORY)).toFixed(2),
      'p50 ms': p50.toFixed(2),
      'p99 ms': p99.toFixed(2),
      'not 2xx': sum(name, 'notOk'),
      'socket errors': sum(name, 'socketErrors')
    }
  }))
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 3, connections: 32 })
  const { rounds, seconds, connections } = options
  await requireWrk()
  const redis = await startRedis()
  const cluster = await startCluster()
  process.on('exit', () => [redis, ...cluster].forEach((server) => server.kill()))
  try {
    const subjects = await servers(redis, cluster)
    const running = await startAll(subjects, connections)
    const results = await alternate(rounds, subjects, ({ name }) => load(running.get(name).url, seconds, connections))
    print(`HTTP, ${connections} connections: medians of ${rounds} rounds of ${seconds} s`, results)
    save(options, results)
  } finally {
    await Promise.all([redis, ...cluster].map((server) => server.stop()))
  }
  process.exit()
}

main().catch((error) => fail(error))
