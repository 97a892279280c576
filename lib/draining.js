'use strict'

// Shuts an HTTP server down without losing a request.

const net = require('node:net')
const { setTimeout: sleep } = require('node:timers/promises')

/** The interval of inspections of connections while the server drains. */
const PAUSE_MS = 50

/**
 * Drop a connection without a complete request after this many inspections without data from the client: a second.
 * This counts inspections, not time: a process that was suspended for a second has not read the data sent meanwhile.
 */
const SILENT_INSPECTIONS = 20

/** The property of a socket that holds its connection's state. */
const CONNECTION = Symbol('connection')

/** Stops listening. An HTTP server's own `close` would also destroy connections with unflushed responses. */
const closeListener = net.Server.prototype.close

/** The open connections of a Fastify app. The bookkeeping costs one assignment per request. */
class Connections {
  #servers = new Set()
  #isDraining = false
  /** By client address: the socket, the bytes it has sent, its silent inspections in a row, and its last response. */
  #open = new Map()

  constructor (app) {
    this.#watch(app.server)
    // If an app listens on `localhost`, Fastify creates another server for each further address and does not expose it.
    app.addHook('onRequest', ({ raw: { socket } }, reply, done) => {
      if (socket[CONNECTION] === undefined && socket.server !== undefined) this.#adopt(socket, reply.raw)
      done()
    })
  }

  /** Starts watching a server that was found by its first request, and that request's connection. */
  #adopt (socket, response) {
    const { server } = socket
    if (!this.#servers.has(server)) {
      this.#watch(server)
      // Fastify calls this when it closes its main server.
      server.close = closeListener
    }
    this.#add(socket)
    this.#begin(socket, response)
  }

  #watch (server) {
    this.#servers.add(server)
    // Runs before Fastify's listener, which sends the headers.
    server.prependListener('request', ({ socket }, response) => {
      if (socket[CONNECTION] !== undefined) this.#begin(socket, response)
    })
    // Runs before Node's listener, which may read a request at once.
    server.prependListener('connection', (socket) => this.#add(socket))
    // Replaces the raw socket that TLS was negotiated on.
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

  /** Sends `connection: close` with every response from now on. Resolves after `milliseconds`. */
  async drain (milliseconds) {
    this.#isDraining = true
    for (const { response } of this.#open.values()) if (response?.headersSent === false) response.setHeader('connection', 'close')
    const end = performance.now() + milliseconds
    for (let left = milliseconds; left > 0; left = end - performance.now()) {
      this.#noteSilence()
      await sleep(Math.min(PAUSE_MS, left))
    }
  }

  /** Stops accepting connections, drops silent ones, and resolves when all requests have been answered. */
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
      // With pipelined requests, the last response finishes last.
      const isAwaited = response?.writableFinished === false && (response.req.complete || response.writableEnded)
      if (!isAwaited && silent >= SILENT_INSPECTIONS) socket.destroySoon()
    }
  }
}

/**
 * Makes `app.close()` of a Fastify app lose no request; the app needs the option `return503OnClosing: false`. Returns
 * `drain(milliseconds)`, to be called before `app.close()`: it asks clients to close their connections.
 */
function closeWithoutLoss (app) {
  const connections = new Connections(app)
  app.addHook('preClose', () => connections.close())
  return (milliseconds) => connections.drain(milliseconds)
}

module.exports = { closeWithoutLoss }
