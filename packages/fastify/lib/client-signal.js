'use strict'

const { codedError } = require('extism-host/internal')

/**
 * The parts of an AbortSignal that a call needs, aborted when the client disconnects before its response is complete.
 * An AbortController would cost each request more than starting its call; and Fastify's own `request.signal` is
 * aborted as soon as the body has been read.
 */
class ClientSignal {
  #response

  constructor (response) {
    this.#response = response
  }

  get aborted () {
    return Boolean(this.#response.destroyed)
  }

  get reason () {
    return codedError('CANCELED', 'the client disconnected')
  }

  addEventListener (type, listener) {
    this.#response.on('close', listener)
  }

  // A response also emits 'close' after it has been sent: the call must have removed its listener by then.
  removeEventListener (type, listener) {
    this.#response.removeListener('close', listener)
  }
}

module.exports = { ClientSignal }
