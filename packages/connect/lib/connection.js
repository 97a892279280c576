'use strict'

const { NestedCounts } = require('extism-host/internal')
const { GuestError } = require('./protocol.js')

/** A connection that guests may name: its operations, each `(request, payload, context)`, return a reply or a promise of one. */
class Connection {
  #operations
  #calls = new NestedCounts()
  #running = 0

  constructor (operations) {
    this.#operations = new Map(Object.entries({ connect: () => '', ...operations }))
  }

  perform (operation, ...args) {
    const run = this.#operations.get(operation)
    if (run === undefined) throw new GuestError('UNSUPPORTED', `this connection has no operation "${operation}"`)
    return run(...args)
  }

  begin () {
    this.#running++
  }

  end (operation, outcome) {
    this.#running--
    this.#calls.add(operation, outcome)
  }

  stats () {
    return { calls: this.#calls.toObject(), running: this.#running }
  }
}

module.exports = { Connection }
