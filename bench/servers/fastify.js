'use strict'

// The article's service with extism-host/fastify: the same as server.js, with declared routes.
// With `metrics`, every call is counted and timed.

const Fastify = require('fastify')
const { MemoryStore } = require('../..')
const { SAY_HELLO, MESSAGES } = require('../support/article.js')

const { PORT, HOST, INSTANCES, LOG_LEVEL } = process.env
const app = Fastify({ logger: { level: LOG_LEVEL || 'info' } })

app.register(require('@extism-host/fastify'), {
  plugins: { hello: { source: SAY_HELLO, useWasi: true, timeoutMs: 10_000, eager: true, instances: Number(INSTANCES) } },
  store: new MemoryStore(MESSAGES),
  routes: [{ url: '/', plugin: 'hello', function: 'say_hello', contentType: 'text/plain; charset=utf-8' }],
  metrics: process.argv[2] === 'metrics'
})
app.listen({ port: Number(PORT), host: HOST })
