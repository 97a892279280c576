'use strict'

// The article's service: POST / runs a plugin's function on the request's body and responds with its output. The
// plugin reads its messages from a store, in this process or at STORE_URL.

const { availableParallelism } = require('node:os')
const { join } = require('node:path')
const { STATUS_CODES } = require('node:http')
const Fastify = require('fastify')
const closeWithGrace = require('close-with-grace')
const { createPlugin, MemoryStore } = require('./index.js')
const { closeWithoutLoss } = require('./lib/draining.js')
const { LogOutput } = require('./lib/log-output.js')
const { STORE_START_MS, openStoreInTime } = require('./lib/store-start.js')

const SAY_HELLO = join(__dirname, 'plugins/say-hello/say-hello.wasm')

// The HTTP status of a failed call, by error code; any other code is 500. The details go to the log only.
const STATUS = { TIMEOUT: 504, QUEUE_FULL: 503, UNAVAILABLE: 503, CLOSED: 503, STORE_UNAVAILABLE: 503 }

/**
 * Builds the server, but does not listen yet. Closing it also closes the plugin.
 *
 * `wasm` is any source that createPlugin takes; `plugin` holds more options for it.
 */
async function buildServer ({
  wasm = SAY_HELLO,
  functionName = 'say_hello',
  store = new MemoryStore([['hello', '👋 Hello World 🌍'], ['message', 'I 💜 Extism 😍']]),
  plugin: pluginOptions,
  ...fastifyOptions
} = {}) {
  const plugin = await createPlugin(wasm, { useWasi: true, timeoutMs: 10_000, store, eager: true, ...pluginOptions })
  const app = Fastify({ return503OnClosing: false, ...fastifyOptions })
  app.decorate('store', store)
  app.addHook('onClose', () => plugin.close())
  app.decorate('drain', closeWithoutLoss(app))

  // The body is the plugin's input, byte for byte. Fastify would reject a malformed content-type.
  app.addHook('onRequest', (request, reply, done) => {
    delete request.headers['content-type']
    done()
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))

  app.post('/', async (request, reply) => {
    const output = await plugin.call(functionName, request.body)
    reply.type('text/plain; charset=utf-8')
    return output === null ? '' : output.bytes()
  })

  app.setErrorHandler((error, request, reply) => {
    const statusCode = STATUS[error.code] ?? error.statusCode ?? 500
    if (statusCode >= 500) request.log.error(error)
    if (statusCode === 503) reply.header('retry-after', '1')
    return reply.code(statusCode).send({
      statusCode,
      code: error.code ?? 'INTERNAL',
      error: STATUS_CODES[statusCode],
      message: statusCode >= 500 ? 'the plugin gave no answer' : error.message
    })
  })

  return app
}

async function start ({ PORT, HOST, PLUGIN_WASM, PLUGIN_FUNCTION, STORE_URL, INSTANCES, LOG_LEVEL, DRAIN_MS } = process.env) {
  const store = STORE_URL ? await openStoreInTime(STORE_URL, {}, STORE_START_MS, console) : undefined
  const app = await buildServer({
    wasm: PLUGIN_WASM || undefined,
    functionName: PLUGIN_FUNCTION || undefined,
    store,
    plugin: { instances: Number(INSTANCES || availableParallelism()) },
    logger: { level: LOG_LEVEL || 'info', stream: new LogOutput() }
  })
  const drainMs = Number(DRAIN_MS || 1_000)
  closeWithGrace({ delay: drainMs + 15_000, logger: app.log }, async ({ err, signal }) => {
    if (err) {
      app.log.error(err, 'shutting down after an error')
    } else {
      app.log.info({ signal }, `shutting down on ${signal}`)
      await app.drain(drainMs)
    }
    await app.close()
    await store?.close()
    app.log.info('shut down')
  })
  await app.listen({ port: Number(PORT || 7070), host: HOST || '0.0.0.0' })
}

if (require.main === module) {
  start().catch((error) => {
    console.error(`server.js cannot start: ${error.message}`)
    process.exit(1)
  })
}

module.exports = { buildServer }
