'use strict'

// MQTT brokers for tests: on free ports of the loopback interface, with their files in a directory of their own.

const { spawn } = require('node:child_process')
const { once } = require('node:events')
const { chmodSync, existsSync, mkdtempSync, rmSync, statSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { delimiter, join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { HOST, freePort, isListening } = require('./redis.js')

/** Debian has it where a user's PATH does not reach. */
const ENVIRONMENT = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` }

const hasMosquitto = () => ENVIRONMENT.PATH.split(delimiter).some((directory) => existsSync(join(directory, 'mosquitto')))

class Mosquitto {
  #process
  #directory = mkdtempSync(join(tmpdir(), 'extism-host-mqtt-'))

  constructor (port, lines) {
    this.port = port
    // If root starts it, it runs as another user.
    chmodSync(this.#directory, 0o777)
    writeFileSync(join(this.#directory, 'mosquitto.conf'), [
      `listener ${port} ${HOST}`, 'allow_anonymous true', 'persistence true', `persistence_location ${this.#directory}/`,
      'max_queued_messages 0', ...lines, ''
    ].join('\n'))
  }

  get url () {
    return `mqtt://${HOST}:${this.port}`
  }

  /** Starts it, also again after it was killed. */
  async start () {
    this.#process = spawn('mosquitto', ['-c', join(this.#directory, 'mosquitto.conf')], { stdio: 'ignore', env: ENVIRONMENT })
    this.#process.on('error', (error) => { this.#process.failure = error })
    for (let tries = 0; !await isListening(this.port); tries++) {
      if (this.#process.failure !== undefined || this.#process.exitCode !== null || tries > 500) {
        throw new Error(`mosquitto has not started: ${this.#process.failure?.message ?? this.#process.exitCode}`)
      }
      await sleep(20)
    }
    return this
  }

  /** Writes its state to its file, which survives a kill. */
  async save () {
    const file = join(this.#directory, 'mosquitto.db')
    const changed = () => statSync(file, { throwIfNoEntry: false })?.mtimeMs
    const before = changed()
    this.#process.kill('SIGUSR1')
    while (changed() === before) await sleep(20)
  }

  async kill () {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const ended = once(this.#process, 'exit')
    this.#process.kill('SIGKILL')
    await ended
  }

  async stop () {
    await this.kill()
    rmSync(this.#directory, { recursive: true, maxRetries: 10 })
  }
}

/** Starts a broker with these lines of configuration. */
async function startMosquitto (lines = []) {
  return new Mosquitto(await freePort(), lines).start()
}

module.exports = { hasMosquitto, startMosquitto }
