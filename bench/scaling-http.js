'use strict'

// Measures scaling beyond one event loop: several processes that share a port, and several JavaScript threads, each with
// a plugin of its own. See README.md.

const { once } = require('node:events')
const { join } = require('node:path')
const { Worker } = require('node:worker_threads')
const { fail, requireWrk, startAll, loadAndMeasure } = require('./support/http.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const IN_FLIGHT = 32
const THREADS = [1, 2]

/** Each server as one process and as several. Ours has the same total number of instances either way. */
function servers (processes) {
  return [
    { name: 'Fastify, no plugin', program: ['bench/servers/bare.js'], isConstant: true },
    { name: 'JavaScript SDK, foreground', program: ['bench/servers/sdk.js'] },
    { name: 'extism-host', program: ['server.js'] }
  ].flatMap(({ name, program, isConstant }) => [
    { name: `${name}, 1 process`, single: `${name}, 1 process`, isConstant, arguments: program, instances: processes },
    {
      name: `${name}, ${processes} processes`,
      single: `${name}, 1 process`,
      isConstant,
      arguments: ['bench/servers/cluster.js', String(processes), ...program],
      instances: 1,
      isCluster: true
    }
  ])
}

function printServers (title, subjects, results) {
  const rate = (name) => medians(results[name]).requestsPerSecond
  const sum = (name, key) => String(results[name].reduce((total, round) => total + round[key], 0))
  printTable(title, subjects.map(({ name, single }) => {
    const { p50, p99, cpuMicroseconds, cores } = medians(results[name])
    return {
      server: name,
      'requests/s': rate(name).toFixed(0),
      '× 1 process': (rate(name) / rate(single)).toFixed(2),
      'p50 ms': p50.toFixed(2),
      'p99 ms': p99.toFixed(2),
      'CPU µs per request': cpuMicroseconds?.toFixed(1) ?? '–',
      'cores busy': cores?.toFixed(2) ?? '–',
      'not 2xx': sum(name, 'notOk'),
      'socket errors': sum(name, 'socketErrors')
    }
  }))
}

async function startCallers (library, threads) {
  const callers = Array.from({ length: threads }, () => {
    const caller = new Worker(join(__dirname, 'children/caller.js'), { workerData: { library } })
    caller.on('error', (error) => fail(error))
    return caller
  })
  await Promise.all(callers.map((caller) => once(caller, 'message')))
  return callers
}

/** Runs all threads at once, each with this many calls in flight. */
async function measureCallers ({ callers }, seconds) {
  const start = performance.now()
  const before = process.cpuUsage()
  const answers = callers.map((caller) => once(caller, 'message'))
  for (const caller of callers) caller.postMessage({ seconds, inFlight: IN_FLIGHT })
  const callsPerSecond = (await Promise.all(answers)).reduce((sum, [answer]) => sum + answer.callsPerSecond, 0)
  const { user, system } = process.cpuUsage(before)
  const took = (performance.now() - start) / 1e3
  return { callsPerSecond, cpuMicroseconds: (user + system) / took / callsPerSecond }
}

async function main () {
  const options = readOptions({ rounds: 9, seconds: 2, connections: 32, processes: 2 })
  const { rounds, seconds, connections, processes } = options

  const subjects = []
  for (const [name, library] of [['JavaScript SDK, foreground', 'sdk'], ['extism-host', 'host']]) {
    for (const threads of THREADS) {
      subjects.push({
        name: `${name}, ${threads} ${threads === 1 ? 'thread' : 'threads'}`,
        single: `${name}, ${THREADS[0]} thread`,
        callers: await startCallers(library, threads)
      })
    }
  }
  const calls = await alternate(rounds, subjects, (subject) => measureCallers(subject, seconds))
  const rate = (name) => medians(calls[name]).callsPerSecond
  printTable(`say_hello, ${IN_FLIGHT} in flight from each JavaScript thread: medians of ${rounds} rounds of ${seconds} s`,
    subjects.map(({ name, single }) => ({
      '': name,
      'calls/s': rate(name).toFixed(0),
      '× 1 thread': (rate(name) / rate(single)).toFixed(2),
      'CPU µs per call': medians(calls[name]).cpuMicroseconds.toFixed(1)
    })))
  await Promise.all(subjects.flatMap(({ callers }) => callers.map((caller) => caller.terminate())))

  await requireWrk()
  const all = servers(processes)
  const running = await startAll(all, connections)
  const http = await alternate(rounds, all, ({ name }) => loadAndMeasure(running.get(name), seconds, connections))
  printServers(`HTTP, ${connections} connections: medians of ${rounds} rounds of ${seconds} s`, all, http)

  save(options, { http, calls })
  process.exit()
}

main().catch((error) => fail(error))
