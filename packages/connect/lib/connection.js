'use strict'

const { GuestError } = require('./protocol.js')

/** A connection that guests may name: its operations, each `(request, payload, context)`, return a reply or a promise of one. */
class Connection {
  #operations

  constructor (operations) {
    this.#operations = new Map(Object.entries(operations))
  }

  perform (operation, ...args) {
    const run = this.#operations.get(operation)
    if (run === undefined) throw new GuestError('UNSUPPORTED', `this connection has no operation "${operation}"`)
    return run(...args)
  }
}

module.exports = { Connection }
