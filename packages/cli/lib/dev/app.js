'use strict'

// The server of `extism-host dev`: the page at /_dev, what the page asks for, and each function at POST /<function>.
// Any page that the developer's browser shows may send requests to it, so each request has to prove its origin.

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const Fastify = require('fastify')

/** Larger inputs are refused. */
const BODY_LIMIT = 2 ** 26

/** The outputs to keep for the page, in bytes and by number. The newest is always kept. */
const MAX_KEPT_BYTES = 2 ** 27
const MAX_KEPT = 50

const LOOPBACK = /^(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/i

const HEADERS = {
  'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; " +
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-store'
}

/** An output as HTML may show text, styles and images of its own. It runs no script, and sends no request. */
const OUTPUT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"

const PAGE = { '/_dev': ['index.html', 'text/html'], '/_dev/page.css': ['page.css', 'text/css'], '/_dev/page.js': ['page.js', 'text/javascript'] }

const httpError = (statusCode, message) => Object.assign(new Error(message), { statusCode })

/** Refuses names that an attacker's DNS server leads here (DNS rebinding), and requests from pages of other origins. */
function checkOrigin (request, reply, done) {
  reply.headers(HEADERS)
  const { host = '', origin } = request.headers
  const isOurs = LOOPBACK.test(host) && (origin === undefined || origin === `http://${host}`)
  done(isOurs ? undefined : httpError(403, 'only the page of extism-host dev and programs on this machine may send requests: open it as http://127.0.0.1'))
}

/** Aborts when the client has gone before its answer was sent. */
function signalOf (reply) {
  const controller = new AbortController()
  reply.raw.once('close', () => { if (!reply.raw.writableFinished) controller.abort() })
  return controller.signal
}

/** The last outputs by id. */
class Outputs {
  #kept = new Map()
  #bytes = 0
  #last = 0

  add (output) {
    this.#kept.set(++this.#last, output)
    this.#bytes += output.length
    for (const [id, { length }] of this.#kept) {
      if (id === this.#last || (this.#bytes <= MAX_KEPT_BYTES && this.#kept.size <= MAX_KEPT)) break
      this.#kept.delete(id)
      this.#bytes -= length
    }
    return this.#last
  }

  get (id) {
    return this.#kept.get(Number(id))
  }
}

/** Sends the plugin's state, and again after each change. */
function sendEvents (plugin, reply) {
  reply.hijack()
  reply.raw.writeHead(200, { ...HEADERS, 'content-type': 'text/event-stream' })
  const send = () => reply.raw.write(`data: ${JSON.stringify(plugin.state)}\n\n`)
  plugin.on('state', send)
  reply.raw.once('close', () => plugin.off('state', send))
  send()
}

function createApp (plugin, { contentType = 'application/octet-stream' }) {
  // Closing the app also ends the streams of events.
  const app = Fastify({ bodyLimit: BODY_LIMIT, forceCloseConnections: true })
  const outputs = new Outputs()
  app.removeAllContentTypeParsers()
  app.addContentTypeParser([/^/, '*'], { parseAs: 'buffer' }, (request, body, done) => done(null, body))
  app.addHook('onRequest', checkOrigin)

  for (const [url, [file, type]] of Object.entries(PAGE)) {
    const content = readFileSync(join(__dirname, 'page', file))
    app.get(url, (request, reply) => reply.type(`${type}; charset=utf-8`).send(content))
  }
  app.get('/_dev/events', (request, reply) => sendEvents(plugin, reply))
  app.post('/_dev/call/:function', async (request, reply) => {
    const { output, report } = await plugin.call(request.params.function, request.body, request, signalOf(reply))
    return output === undefined ? report : { ...report, outputId: outputs.add(output) }
  })
  app.get('/_dev/output/:id', async (request, reply) => {
    const output = outputs.get(request.params.id)
    if (output === undefined) throw httpError(404, 'this output is no longer kept: repeat the call')
    if (request.query.as === 'html') reply.header('content-security-policy', OUTPUT_POLICY).type('text/html; charset=utf-8')
    else reply.type('application/octet-stream')
    return output
  })
  app.post('/:function', async (request, reply) => {
    const { output, report: { error } } = await plugin.call(request.params.function, request.body, request, signalOf(reply))
    if (error !== undefined) return reply.code(500).send(error)
    return reply.type(contentType).send(output)
  })
  return app
}

module.exports = { createApp }
