'use strict'

// What the tests of triggers share: opening one, plugins for it, and children that handle messages and are killed.

const { spawn } = require('node:child_process')
const { once } = require('node:events')
const { existsSync, readFileSync } = require('node:fs')
const { join } = require('node:path')
const { connect } = require('@nats-io/transport-node')
const { jetStreamTrigger, mqttTrigger } = require('../../lib/connect.js')

const OPEN = {
  async jetStream (url, options) {
    const connection = await connect({ servers: url, reconnectTimeWait: 20, maxReconnectAttempts: -1, waitOnFirstConnect: true })
    return jetStreamTrigger(connection, { stream: 'ORDERS', consumer: 'workers', ackWaitMs: 1_000, ...options })
  },
  mqtt: (url, options) => mqttTrigger({ url, reconnectPeriod: 20 }, { clientId: 'workers', topic: 'orders/#', ...options })
}

const open = (kind, ...args) => OPEN[kind](...args)

/** A plugin whose outputs are kept, as text. */
const recorder = (plugin, outputs) => ({
  async call (...args) {
    const output = await plugin.call(...args)
    outputs.push(output.text())
    return output
  }
})

/** A plugin in JavaScript, which gets each message's head and text. */
const pluginOf = (handle) => ({
  async call (_, input) {
    const [head, text] = Buffer.from(input).toString().split('\n')
    await handle(JSON.parse(head), text)
    return null
  }
})

/** The messages that have been handled, in that order. */
const handledIn = (file) => existsSync(file) ? readFileSync(file, 'utf8').split('\n').slice(0, -1) : []

/** A process that handles messages, and appends them to the file. */
class TriggerChild {
  #args
  #child

  constructor (kind, url, wasm, file) {
    this.#args = [join(__dirname, 'trigger-child.js'), kind, url, wasm, file]
  }

  start () {
    this.#child = spawn(process.execPath, this.#args, { stdio: ['ignore', 'ignore', 'inherit'] })
  }

  async kill () {
    if (this.#child === undefined || this.#child.exitCode !== null || this.#child.signalCode !== null) return
    const ended = once(this.#child, 'exit')
    this.#child.kill('SIGKILL')
    await ended
  }
}

module.exports = { TriggerChild, handledIn, open, pluginOf, recorder }
