'use strict'

// NATS servers for tests: on free ports of the loopback interface, without files.

const { spawn } = require('node:child_process')
const { once } = require('node:events')
const { setTimeout: sleep } = require('node:timers/promises')
const { canRun } = require('./processes.js')
const { HOST, freePort, isListening } = require('./redis.js')

/** Whether there is a nats-server. */
const hasNats = () => canRun('nats-server', ['--version'])

class NatsServer {
  #process
  #args

  constructor (port, args) {
    this.port = port
    this.#args = args
  }

  get url () {
    return `nats://${HOST}:${this.port}`
  }

  /** Starts it, also again after it was killed. */
  async start () {
    this.#process = spawn('nats-server', ['-a', HOST, '-p', String(this.port), ...this.#args], { stdio: 'ignore' })
    for (let tries = 0; !await isListening(this.port); tries++) {
      if (this.#process.exitCode !== null || tries > 500) throw new Error('nats-server has not started')
      await sleep(20)
    }
    return this
  }

  /** Stops answering, without closing its connections. */
  freeze () {
    this.#process.kill('SIGSTOP')
  }

  unfreeze () {
    this.#process.kill('SIGCONT')
  }

  async stop () {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const ended = once(this.#process, 'exit')
    this.#process.kill('SIGKILL')
    await ended
  }
}

/** Starts a server with these arguments. */
async function startNats (args = []) {
  return new NatsServer(await freePort(), args).start()
}

module.exports = { hasNats, startNats }
