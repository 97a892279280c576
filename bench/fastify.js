'use strict'

// Measures the cost of a route of extism-host/fastify, compared to the same route by hand, in server.js. See README.md.

const { availableParallelism } = require('node:os')
const { fail, requireWrk, startAll, loadAndMeasure } = require('./support/http.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const instances = availableParallelism()
const BY_HAND = 'server.js, by hand'
const SERVERS = [
  { name: BY_HAND, arguments: ['server.js'], instances },
  { name: 'extism-host/fastify', arguments: ['bench/servers/fastify.js'], instances },
  { name: 'extism-host/fastify, metrics', arguments: ['bench/servers/fastify.js', 'metrics'], instances },
  { name: 'extism-host/fastify, OpenTelemetry', arguments: ['bench/servers/fastify.js', 'otel'], instances }
]

async function main () {
  const options = readOptions({ rounds: 9, seconds: 2, connections: 32 })
  const { rounds, seconds, connections } = options
  await requireWrk()
  const running = await startAll(SERVERS, connections)
  const results = await alternate(rounds, SERVERS, ({ name }) => loadAndMeasure(running.get(name), seconds, connections))

  const byHand = medians(results[BY_HAND])
  const sum = (name, key) => String(results[name].reduce((total, round) => total + round[key], 0))
  printTable(`HTTP, ${connections} connections: medians of ${rounds} rounds of ${seconds} s`, SERVERS.map(({ name }) => {
    const { requestsPerSecond, p50, p99, cpuMicroseconds } = medians(results[name])
    return {
      server: name,
      'requests/s': requestsPerSecond.toFixed(0),
      '× by hand': (requestsPerSecond / byHand.requestsPerSecond).toFixed(2),
      'p50 ms': p50.toFixed(2),
      'p99 ms': p99.toFixed(2),
      'CPU µs per request': cpuMicroseconds?.toFixed(1) ?? '–',
      'CPU, × by hand': cpuMicroseconds === undefined ? '–' : (cpuMicroseconds / byHand.cpuMicroseconds).toFixed(2),
      'not 2xx': sum(name, 'notOk'),
      'socket errors': sum(name, 'socketErrors')
    }
  }))
  save(options, results)
  process.exit()
}

main().catch((error) => fail(error))
