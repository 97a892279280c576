'use strict'

// Ends an HTTP server without losing a request.

const net = require('node:net')
const { setTimeout: sleep } = require('node:timers/promises')

/** How often connections are inspected while the server drains, in milliseconds. */
const PAUSE_MS = 50

/** How long a connection without a complete request may send nothing before it is dropped. */
const SILENT_MS = 1_000

/** The connections of a Fastify app, and the answers that they wait for. */
class Connections {
  #server
  #isDraining = false
  /** Sockets by the address of their client, with how much they had sent when they last sent something. */
  #open = new Map()
  #unanswered = new Set()

  constructor (server) {
    this.#server = server
    const unanswered = this.#unanswered
    function forget () { unanswered.delete(this) }
    // Before Fastify's own listener, which sends the headers.
    server.prependListener('request', (request, response) => {
      if (this.#isDraining) response.setHeader('connection', 'close')
      unanswered.add(response)
      response.once('close', forget)
    })
    server.on('connection', (socket) => this.#add(socket))
    // Takes the place of the socket that TLS was negotiated on.
    server.on('secureConnection', (socket) => this.#add(socket))
  }

  #add (socket) {
    const client = `${socket.remoteAddress} ${socket.remotePort}`
    this.#open.set(client, { socket, bytesRead: 0, since: performance.now() })
    socket.once('close', () => { if (this.#open.get(client)?.socket === socket) this.#open.delete(client) })
  }

  /** From now on clients are told to close their connections after the answer. Resolves after `milliseconds`. */
  async drain (milliseconds) {
    this.#isDraining = true
    for (const response of this.#unanswered) if (!response.headersSent) response.setHeader('connection', 'close')
    const end = performance.now() + milliseconds
    for (let left = milliseconds; left > 0; left = end - performance.now()) {
      this.#noteActivity()
      await sleep(Math.min(PAUSE_MS, left))
    }
  }

  /** Accepts no more connections, drops silent ones, and resolves when those with requests have got their answers. */
  async close () {
    this.#isDraining = true
    // `close` of an HTTP server would destroy connections whose answer has not been written out yet.
    net.Server.prototype.close.call(this.#server)
    for (;;) {
      this.#noteActivity()
      this.#dropSilent()
      if (this.#open.size === 0) return
      await sleep(PAUSE_MS)
    }
  }

  #noteActivity () {
    for (const connection of this.#open.values()) {
      const { bytesRead } = connection.socket
      if (connection.bytesRead === bytesRead) continue
      connection.bytesRead = bytesRead
      connection.since = performance.now()
    }
  }

  #dropSilent () {
    const busy = new Set()
    for (const { req, writableEnded } of this.#unanswered) if (req.complete || writableEnded) busy.add(req.socket)
    for (const { socket, since } of this.#open.values()) {
      if (!busy.has(socket) && performance.now() - since > SILENT_MS) socket.destroySoon()
    }
  }
}

/**
 * Lets a Fastify app be closed without losing a request: its options must have `return503OnClosing: false`. Returns a function
 * that has clients leave for some milliseconds, to be called before `app.close()`.
 */
function closeWithoutLoss (app) {
  const connections = new Connections(app.server)
  app.addHook('preClose', () => connections.close())
  return (milliseconds) => connections.drain(milliseconds)
}

module.exports = { closeWithoutLoss }
