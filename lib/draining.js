'use strict'

// Ends an HTTP server without losing a request.

const net = require('node:net')
const { setTimeout: sleep } = require('node:timers/promises')

/** How often connections are inspected while the server drains, in milliseconds. */
const PAUSE_MS = 50

/**
 * After how many inspections in which it had sent nothing a connection without a complete request is dropped: a second. It is not
 * a time, as a process that was not running for a second has not read what was sent meanwhile.
 */
const SILENT_INSPECTIONS = 20

/** Where a socket has its entry in `Connections`. */
const CONNECTION = Symbol('connection')

/** Ends listening. `close` of an HTTP server would also destroy connections whose answer has not been written out yet. */
const closeListener = net.Server.prototype.close

/** The connections of a Fastify app. Each request costs no more than an assignment. */
class Connections {
  #servers = new Set()
  #isDraining = false
  /** By the address of the client: the socket, how much it has sent, for how many inspections it has been silent, and its last response. */
  #open = new Map()

  constructor (app) {
    this.#watch(app.server)
    // An app that listens on `localhost` has a server of its own for each further address, which it tells nobody of.
    app.addHook('onRequest', ({ raw: { socket } }, reply, done) => {
      if (socket[CONNECTION] === undefined && socket.server !== undefined) this.#adopt(socket, reply.raw)
      done()
    })
  }

  /** Takes over a server and its connection that has sent the server's first request. */
  #adopt (socket, response) {
    const { server } = socket
    if (!this.#servers.has(server)) {
      this.#watch(server)
      // Fastify closes it when its main server is closed.
      server.close = closeListener
    }
    this.#add(socket)
    this.#begin(socket, response)
  }

  #watch (server) {
    this.#servers.add(server)
    // Before Fastify's own listener, which sends the headers.
    server.prependListener('request', ({ socket }, response) => {
      if (socket[CONNECTION] !== undefined) this.#begin(socket, response)
    })
    // Before Node's own listener, which may read a request at once.
    server.prependListener('connection', (socket) => this.#add(socket))
    // Takes the place of the socket that TLS was negotiated on.
    server.prependListener('secureConnection', (socket) => this.#add(socket))
  }

  #begin (socket, response) {
    socket[CONNECTION].response = response
    if (this.#isDraining) response.setHeader('connection', 'close')
  }

  #add (socket) {
    const client = `${socket.remoteAddress} ${socket.remotePort} ${socket.localAddress}`
    const connection = { socket, bytesRead: 0, silent: 0, response: undefined }
    socket[CONNECTION] = connection
    this.#open.set(client, connection)
    socket.once('close', () => { if (this.#open.get(client) === connection) this.#open.delete(client) })
  }

  /** From now on clients are told to close their connections after the answer. Resolves after `milliseconds`. */
  async drain (milliseconds) {
    this.#isDraining = true
    for (const { response } of this.#open.values()) if (response?.headersSent === false) response.setHeader('connection', 'close')
    const end = performance.now() + milliseconds
    for (let left = milliseconds; left > 0; left = end - performance.now()) {
      this.#noteSilence()
      await sleep(Math.min(PAUSE_MS, left))
    }
  }

  /** Accepts no more connections, drops silent ones, and resolves when those with requests have got their answers. */
  async close () {
    this.#isDraining = true
    for (const server of this.#servers) closeListener.call(server)
    for (;;) {
      this.#noteSilence()
      this.#dropSilent()
      if (this.#open.size === 0) return
      await sleep(PAUSE_MS)
    }
  }

  #noteSilence () {
    for (const connection of this.#open.values()) {
      const { bytesRead } = connection.socket
      connection.silent = connection.bytesRead === bytesRead ? connection.silent + 1 : 0
      connection.bytesRead = bytesRead
    }
  }

  #dropSilent () {
    for (const { socket, silent, response } of this.#open.values()) {
      // With pipelined requests, the last response is the last to be finished.
      const isAwaited = response?.writableFinished === false && (response.req.complete || response.writableEnded)
      if (!isAwaited && silent >= SILENT_INSPECTIONS) socket.destroySoon()
    }
  }
}

/**
 * Lets a Fastify app be closed without losing a request: its options must have `return503OnClosing: false`. Returns a function
 * that has clients leave for some milliseconds, to be called before `app.close()`.
 */
function closeWithoutLoss (app) {
  const connections = new Connections(app)
  app.addHook('preClose', () => connections.close())
  return (milliseconds) => connections.drain(milliseconds)
}

module.exports = { closeWithoutLoss }
