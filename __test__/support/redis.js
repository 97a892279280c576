'use strict'

// Redis servers for tests: on free ports of the loopback interface, without files that outlive them.

const { execFile, execFileSync, spawn } = require('node:child_process')
const { once } = require('node:events')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { connect, createServer } = require('node:net')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { promisify } = require('node:util')
const { canRun } = require('./processes.js')

const run = promisify(execFile)

const HOST = '127.0.0.1'

/** A cluster's servers talk to each other on a port that is higher by this. */
const BUS = 10_000

/** Whether there is a redis-server. */
const hasRedis = () => canRun('redis-server', ['--version'])

function isFree (port) {
  return new Promise((resolve) => {
    const probe = createServer()
    probe.on('error', () => resolve(false))
    probe.listen(port, HOST, () => probe.close(() => resolve(true)))
  })
}

/** A free port, whose bus port is free too. */
async function freePort () {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 30_000)
    if (await isFree(port) && await isFree(port + BUS)) return port
  }
}

function isListening (port) {
  return new Promise((resolve) => {
    const socket = connect(port, HOST, () => {
      socket.destroy()
      resolve(true)
    })
    socket.on('error', () => resolve(false))
  })
}

/** A server. `options` are lines of its configuration. */
class RedisServer {
  #process
  #directory = mkdtempSync(join(tmpdir(), 'extism-host-redis-'))

  #certificates

  constructor (port, options, certificates) {
    this.port = port
    this.options = options
    this.#certificates = certificates
  }

  get url () {
    return `${this.#certificates === undefined ? 'redis' : 'rediss'}://${HOST}:${this.port}`
  }

  /** What redis-cli needs to talk to it. */
  get #tls () {
    return this.#certificates === undefined ? [] : ['--tls', '--cacert', this.#certificates.ca]
  }

  /** Starts it, also again after it was killed; what it had is gone then. */
  async start () {
    const config = join(this.#directory, 'redis.conf')
    const certificates = this.#certificates
    const listen = certificates === undefined
      ? [`port ${this.port}`]
      : [
          'port 0', `tls-port ${this.port}`, `tls-cert-file ${certificates.certificate}`, `tls-key-file ${certificates.key}`,
          `tls-ca-cert-file ${certificates.ca}`, 'tls-auth-clients no', 'tls-cluster yes', 'tls-replication yes'
        ]
    writeFileSync(config, [
      `bind ${HOST}`, ...listen, `dir ${this.#directory}`, 'save ""', 'appendonly no', 'daemonize no', ...this.options, ''
    ].join('\n'))
    this.#process = spawn('redis-server', [config], { stdio: 'ignore' })
    for (let tries = 0; !await isListening(this.port); tries++) {
      if (this.#process.exitCode !== null || tries > 500) throw new Error('redis-server has not started')
      await sleep(20)
    }
    return this
  }

  /** Suspends it: connections stay open, and nothing is answered. */
  suspend () {
    this.#process.kill('SIGSTOP')
  }

  resume () {
    this.#process.kill('SIGCONT')
  }

  /** Ends it at once. */
  async kill () {
    if (this.#process === undefined || this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const ended = once(this.#process, 'exit')
    this.#process.kill('SIGKILL')
    await ended
  }

  /** Ends it for good. */
  async stop () {
    await this.kill()
    rmSync(this.#directory, { recursive: true, force: true, maxRetries: 10 })
  }

  /** Runs a command with redis-cli. */
  async command (...args) {
    const { stdout } = await run('redis-cli', ['-h', HOST, '-p', String(this.port), ...this.#tls, ...args])
    return stdout.trim()
  }
}

/** Starts a server, with TLS where there are certificates. */
async function startRedis (options = [], certificates) {
  return new RedisServer(await freePort(), options, certificates).start()
}

/** Starts a cluster of three primaries with as many replicas each as said; the servers, primaries first. */
async function startCluster (replicas = 0, certificates) {
  const servers = await Promise.all(Array.from({ length: 3 * (replicas + 1) }, () => startRedis([
    'cluster-enabled yes', 'cluster-node-timeout 1000', 'cluster-replica-validity-factor 0', 'repl-diskless-sync-delay 0'
  ], certificates)))
  const addresses = servers.map(({ port }) => `${HOST}:${port}`)
  try {
    const tls = certificates === undefined ? [] : ['--tls', '--cacert', certificates.ca]
    await run('redis-cli', [...tls, '--cluster', 'create', ...addresses, '--cluster-replicas', String(replicas), '--cluster-yes'])
    for (const server of servers) {
      const isReady = async () => {
        const info = await server.command('cluster', 'info')
        return /cluster_state:ok/.test(info) && (replicas === 0 || await isInSync(server))
      }
      for (let tries = 0; !await isReady(); tries++) {
        if (tries > 600) throw new Error('the cluster has not come together')
        await sleep(50)
      }
    }
  } catch (error) {
    await Promise.all(servers.map((server) => server.stop()))
    throw error
  }
  return servers
}

/** Whether a server is a primary whose replica is there, or a replica that has what its primary has. */
async function isInSync (server) {
  const info = await server.command('info', 'replication')
  return /role:master/.test(info) ? /connected_slaves:[1-9]/.test(info) : /master_link_status:up/.test(info)
}

/** The URL of a cluster, without TLS or with it. */
function clusterUrl (servers, scheme = 'redis+cluster') {
  return `${scheme}://${servers.map(({ port }) => `${HOST}:${port}`).join(',')}`
}

/** An authority, and a certificate and key of 127.0.0.1 that it has issued: the authority as PEM, the others as paths. */
function makeCertificates (directory) {
  const openssl = (...args) => execFileSync('openssl', args, { cwd: directory, stdio: 'ignore' })
  writeFileSync(join(directory, 'server.ext'), `subjectAltName=IP:${HOST}\n`)
  openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', '/CN=an authority',
    '-keyout', 'ca.key', '-out', 'ca.pem')
  openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-subj', '/CN=a server', '-keyout', 'server.key', '-out', 'server.csr')
  openssl('x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '2', '-extfile', 'server.ext',
    '-out', 'server.pem')
  return { ca: join(directory, 'ca.pem'), certificate: join(directory, 'server.pem'), key: join(directory, 'server.key') }
}

module.exports = { HOST, clusterUrl, freePort, hasRedis, isListening, makeCertificates, startCluster, startRedis }
