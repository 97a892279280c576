'use strict'

// An app with a plugin, @fastify/otel and the SDK, whose spans go to the collector at `OTEL_EXPORTER_OTLP_ENDPOINT`. It
// serves one request and one that fails, prints its log and ends.

const { OTLPTraceExporter } = require('@opentelemetry/exporter-trace-otlp-http')
const { BatchSpanProcessor, NodeTracerProvider } = require('@opentelemetry/sdk-trace-node')
const { FastifyOtelInstrumentation } = require('@fastify/otel')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { ExtismHostInstrumentation } = require('extism-host/otel')
const { guest } = require('./guest.js')

async function main () {
  const provider = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())] })
  provider.register()
  const fastifyOtel = new FastifyOtelInstrumentation()
  fastifyOtel.setTracerProvider(provider)
  const instrumentation = new ExtismHostInstrumentation()

  const app = Fastify({ logger: true })
  await app.register(fastifyOtel.plugin())
  app.register(extismHost, {
    plugins: { many: await guest('many') },
    routes: [{ url: '/echo', plugin: 'many', function: 'echo' }, { url: '/trap', plugin: 'many', function: 'trap' }]
  })
  await app.inject({ method: 'POST', url: '/echo', payload: 'four' })
  await app.inject({ method: 'POST', url: '/trap' })
  await app.close()
  instrumentation.disable()
  await provider.shutdown()
}

main()
