'use strict'

const { codedError } = require('extism-host/internal')

/**
 * What a call needs of an AbortSignal, which is aborted when the client goes away before it has its
 * answer. An AbortController would cost each request more than it costs to start its call; and Fastify's own
 * `request.signal` is aborted as soon as the body has been read.
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
    return codedError('CANCELED', 'the client has gone away')
  }

  addEventListener (type, listener) {
    this.#response.on('close', listener)
  }

  // The response is closed after each answer too: who listens must be gone by then.
  removeEventListener (type, listener) {
    this.#response.removeListener('close', listener)
  }
}

module.exports = { ClientSignal }
