'use strict'

// Runs servers as processes, and wrk, the load generator.

const { once } = require('node:events')
const { readFileSync } = require('node:fs')
const { createServer } = require('node:net')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { expectedAnswer } = require('./article.js')
const children = require('./children.js')

const HOST = '127.0.0.1'
const START_MILLISECONDS = 60_000
/** The unit of CPU time in /proc. */
const TICKS_PER_SECOND = 100

function fail (message) {
  console.error(message)
  process.exit(1)
}

/** wrk prints its version and exits with 1. */
async function requireWrk () {
  await children.runProgram('wrk', ['-v']).catch((error) => {
    if (error.code === 'ENOENT') fail('this benchmark needs wrk to load the servers: apt-get install wrk')
  })
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

/**
 * Starts a server, and resolves to its address and process once it responds; with several processes, once all of them
 * listen.
 */
async function start (server) {
  const port = await freePort()
  const child = children.start(server.arguments, {
    // Silent rather than off, so that all servers pay for a logger per request.
    env: { PORT: port, HOST, INSTANCES: server.instances, LOG_LEVEL: 'silent', ...server.env },
    stdio: ['ignore', 'ignore', 'inherit', ...(server.isCluster ? ['ipc'] : [])]
  })
  child.on('exit', (code, signal) => fail(`the server "${server.name}" ended: ${signal ?? `exit code ${code}`}`))
  if (server.isCluster) await once(child, 'message', { signal: AbortSignal.timeout(START_MILLISECONDS) })

  const url = `http://${HOST}:${port}/`
  const deadline = Date.now() + START_MILLISECONDS
  for (;;) {
    try {
      await post(url, 'Jane Doe')
      return { url, pid: child.pid }
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`the server "${server.name}" does not answer`, { cause: error })
      await sleep(50)
    }
  }
}

/** Checks that a server responds correctly, also to concurrent requests. */
async function check (server, url, connections) {
  const names = Array.from({ length: connections }, (_, i) => server.isConstant ? 'Jane Doe' : `Jane Doe ${i}`)
  names[0] = 'Jane Doe'
  await Promise.all(names.map(async (name) => {
    const { status, text } = await post(url, name)
    if (status !== 200 || text !== expectedAnswer(name)) {
      throw new Error(`the server "${server.name}" answered ${name} with status ${status}:\n${text}`)
    }
  }))
}

/** Starts and checks servers. Resolves to a map of their addresses and processes by name. */
async function startAll (servers, connections) {
  const running = new Map()
  for (const server of servers) {
    running.set(server.name, await start(server))
    await check(server, running.get(server.name).url, connections)
  }
  return running
}

/** Loads a server with wrk. `pause` makes each connection wait that many milliseconds on average. */
async function load (url, seconds, connections, pause) {
  const stdout = await children.runProgram('wrk', [
    '-t1', `-c${connections}`, `-d${seconds}s`, '-s', join(__dirname, 'post.lua'), url,
    ...(pause === undefined ? [] : ['--', String(pause)])
  ])
  const result = /^RESULT (.+)$/m.exec(stdout)
  if (result === null) throw new Error(`wrk gave no result:\n${stdout}`)
  return JSON.parse(result[1])
}

/**
 * The CPU time of a process and its children in seconds; undefined if there is no /proc, or it does not list children.
 */
function cpuSeconds (pid) {
  try {
    // The second field, the program's name in parentheses, may itself have spaces.
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1).split(' ')
    const own = (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND
    const others = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean)
    return others.reduce((sum, child) => sum + cpuSeconds(child), own)
  } catch (error) {
    if (error.code === 'ENOENT') return undefined
    throw error
  }
}

/** Loads a server, and measures how many cores it uses, if that is possible. */
async function loadAndMeasure ({ url, pid }, seconds, connections) {
  const before = cpuSeconds(pid)
  const start = performance.now()
  const result = await load(url, seconds, connections)
  const took = (performance.now() - start) / 1e3
  if (before === undefined) return result
  // In whole cores; the load generator uses the others, or nobody does.
  const cores = (cpuSeconds(pid) - before) / took
  return { ...result, cores, cpuMicroseconds: cores * 1e6 / result.requestsPerSecond }
}

module.exports = { fail, requireWrk, startAll, load, loadAndMeasure }
