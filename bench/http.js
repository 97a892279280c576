'use strict'

// How many requests per second a server with the article's plugin answers, and how fast: a server
// without a plugin, the JavaScript SDK in the foreground and in a worker, and ours. See README.md.

const { execFile, spawn } = require('node:child_process')
const { once } = require('node:events')
const { createServer } = require('node:net')
const { availableParallelism } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { promisify } = require('node:util')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')
const { expectedAnswer } = require('./support/article.js')

const ROOT = join(__dirname, '..')
const HOST = '127.0.0.1'
const INSTANCES = availableParallelism()
const START_MILLISECONDS = 60_000

const BARE = 'Fastify, no plugin'
const FOREGROUND = 'JavaScript SDK, foreground'
const WORKER = 'JavaScript SDK, worker, one call at a time'
const SERVERS = [
  { name: BARE, arguments: ['bench/servers/bare.js'], constant: true },
  { name: FOREGROUND, arguments: ['bench/servers/sdk.js'] },
  { name: WORKER, arguments: ['bench/servers/sdk.js', 'worker'] },
  { name: `extism-host, ${INSTANCES} instances`, arguments: ['server.js'] }
]

const children = new Set()
// Whatever ends this process ends the servers and wrk with it; they hold nothing to be saved.
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1))

function fail (message) {
  console.error(message)
  process.exit(1)
}

async function freePort () {
  const server = createServer().listen(0, HOST)
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

async function post (url, body) {
  const response = await fetch(url, { method: 'POST', body })
  return { status: response.status, text: await response.text() }
}

/** Starts a server and resolves to its address when it answers. */
async function start (server) {
  const port = await freePort()
  const child = spawn(process.execPath, server.arguments, {
    cwd: ROOT,
    // Silent rather than off: Fastify makes a logger per request all the same, and does it for all.
    env: { ...process.env, PORT: port, HOST, INSTANCES, LOG_LEVEL: 'silent' },
    stdio: ['ignore', 'ignore', 'inherit']
  })
  children.add(child)
  child.on('exit', (code, signal) => fail(`the server "${server.name}" ended: ${signal ?? `exit code ${code}`}`))

  const url = `http://${HOST}:${port}/`
  const deadline = Date.now() + START_MILLISECONDS
  for (;;) {
    try {
      await post(url, 'Jane Doe')
      return url
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`the server "${server.name}" does not answer`, { cause: error })
      await sleep(50)
    }
  }
}

/** What answers wrongly is not worth measuring; nor is what mixes up the answers of many. */
async function check (server, url, connections) {
  const names = Array.from({ length: connections }, (_, i) => server.constant ? 'Jane Doe' : `Jane Doe ${i}`)
  names[0] = 'Jane Doe'
  await Promise.all(names.map(async (name) => {
    const { status, text } = await post(url, name)
    if (status !== 200 || text !== expectedAnswer(name)) {
      throw new Error(`the server "${server.name}" answered ${name} with status ${status}:\n${text}`)
    }
  }))
}

/** Loads a server by wrk. A pause makes each connection wait that many milliseconds on average. */
async function load (url, seconds, connections, pause) {
  const running = promisify(execFile)('wrk', [
    '-t1', `-c${connections}`, `-d${seconds}s`, '-s', join(__dirname, 'support/post.lua'), url,
    ...(pause === undefined ? [] : ['--', String(pause)])
  ])
  children.add(running.child)
  const { stdout } = await running
  children.delete(running.child)
  const result = /^RESULT (.+)$/m.exec(stdout)
  if (result === null) throw new Error(`wrk gave no result:\n${stdout}`)
  return JSON.parse(result[1])
}

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
  const options = readOptions({ rounds: 9, seconds: 3, connections: 32, 'half-load': false })
  const { rounds, seconds, connections } = options
  // It prints its version and exits with 1.
  await promisify(execFile)('wrk', ['-v']).catch((error) => {
    if (error.code === 'ENOENT') fail('bench/http.js needs wrk to load the servers: apt-get install wrk')
  })

  const urls = new Map()
  for (const server of SERVERS) {
    urls.set(server.name, await start(server))
    await check(server, urls.get(server.name), connections)
  }

  const full = await alternate(rounds, SERVERS, ({ name }) => load(urls.get(name), seconds, connections))
  print(`HTTP, ${connections} connections: medians of ${rounds} rounds of ${seconds} s`, full)

  let half
  if (options['half-load']) {
    const target = medians(full[FOREGROUND]).requestsPerSecond / 2
    // More connections, so that the pause is long beside wrk's milliseconds and the latency.
    const many = 4 * connections
    // The worker is left out: half of the foreground's load is far more than it can take.
    half = await alternate(rounds, SERVERS.filter(({ name }) => name !== WORKER),
      ({ name }) => load(urls.get(name), seconds, many, many / target * 1e3))
    print(`HTTP, ${many} connections that pause, for half of the SDK foreground's load`, half)
  }

  save(options, { full, half })
  process.exit()
}

main().catch((error) => fail(error))
