'use strict'

// The article's service with extism-host/fastify: the same as server.js, with declared routes.
// With `metrics`, every call is counted and timed; with `otel`, each is an OpenTelemetry span, which goes to nobody.

const Fastify = require('fastify')
const { MemoryStore } = require('../..')
const { SAY_HELLO, MESSAGES } = require('../support/article.js')

const { PORT, HOST, INSTANCES, LOG_LEVEL } = process.env
const [,, what] = process.argv

if (what === 'otel') {
  const { BatchSpanProcessor, InMemorySpanExporter, NodeTracerProvider } = require('@opentelemetry/sdk-trace-node')
  const { ExtismHostInstrumentation } = require('@extism-host/otel')
  class Nobody extends InMemorySpanExporter {
    export (spans, done) { done({ code: 0 }) }
  }
  new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(new Nobody())] }).register()
  module.exports = new ExtismHostInstrumentation()
}

const app = Fastify({ logger: { level: LOG_LEVEL || 'info' } })

app.register(require('@extism-host/fastify'), {
  plugins: { hello: { source: SAY_HELLO, useWasi: true, timeoutMs: 10_000, eager: true, instances: Number(INSTANCES) } },
  store: new MemoryStore(MESSAGES),
  routes: [{ url: '/', plugin: 'hello', function: 'say_hello', contentType: 'text/plain; charset=utf-8' }],
  metrics: what === 'metrics'
})
app.listen({ port: Number(PORT), host: HOST })
