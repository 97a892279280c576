'use strict'

// PostgreSQL servers for tests: on free ports of the loopback interface, in a directory that does not outlive them.

const { execFile, execFileSync, spawn } = require('node:child_process')
const { once } = require('node:events')
const { chownSync, mkdtempSync, readdirSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { promisify } = require('node:util')
const { canRun } = require('./processes.js')
const { HOST, freePort } = require('./redis.js')

const run = promisify(execFile)

/** Debian keeps the servers of several versions apart, outside the PATH. */
const DEBIAN = '/usr/lib/postgresql'

function binaries () {
  try {
    const [newest] = readdirSync(DEBIAN).sort((a, b) => b - a)
    return join(DEBIAN, newest, 'bin')
  } catch {
    return undefined
  }
}

/** The server refuses to run as root: it runs as its own user then. */
const isRoot = process.getuid?.() === 0

function as (command, args) {
  const program = join(binaries(), command)
  return isRoot ? ['runuser', ['-u', 'postgres', '--', program, ...args]] : [program, args]
}

/** Whether there is a PostgreSQL server. */
function hasPostgres () {
  return binaries() !== undefined && canRun(...as('postgres', ['--version']))
}

class PostgresServer {
  #directory = mkdtempSync(join(tmpdir(), 'extism-host-postgres-'))
  #process

  constructor (port) {
    this.port = port
  }

  get #data () {
    return join(this.#directory, 'data')
  }

  /** The address for superusers, who need no password. */
  get url () {
    return `postgresql://postgres@${HOST}:${this.port}/postgres`
  }

  init () {
    if (isRoot) {
      const id = (flag) => Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }))
      chownSync(this.#directory, id('-u'), id('-g'))
    }
    const [command, args] = as('initdb', ['-D', this.#data, '-U', 'postgres', '--auth=trust', '--no-sync', '--encoding=UTF8', '--locale=C'])
    execFileSync(command, args, { cwd: '/', stdio: 'ignore' })
  }

  async start () {
    const settings = [`listen_addresses=${HOST}`, `port=${this.port}`, 'unix_socket_directories=', 'fsync=off']
    const [command, args] = as('postgres', ['-D', this.#data, ...settings.flatMap((setting) => ['-c', setting])])
    this.#process = spawn(command, args, { cwd: '/', stdio: 'ignore' })
    for (let tries = 0; !await this.#isReady(); tries++) {
      if (this.#process.exitCode !== null || tries > 500) throw new Error('postgres has not started')
      await sleep(20)
    }
    return this
  }

  /** Whether it takes connections; it listens before that. */
  async #isReady () {
    try {
      await run(join(binaries(), 'pg_isready'), ['-h', HOST, '-p', String(this.port)])
      return true
    } catch {
      return false
    }
  }

  /** Ends it: SIGQUIT closes all connections at once. It reaches the server's own process, whoever started that. */
  async kill () {
    if (this.#process === undefined || this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const ended = once(this.#process, 'exit')
    const [command, args] = as('pg_ctl', ['stop', '-D', this.#data, '-m', 'immediate'])
    execFileSync(command, args, { cwd: '/', stdio: 'ignore' })
    await ended
  }

  /** Ends it for good. */
  async stop () {
    await this.kill()
    rmSync(this.#directory, { recursive: true, force: true, maxRetries: 10 })
  }
}

async function startPostgres () {
  const server = new PostgresServer(await freePort())
  server.init()
  return server.start()
}

module.exports = { hasPostgres, startPostgres }
