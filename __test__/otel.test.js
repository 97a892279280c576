'use strict'

// OpenTelemetry with the real SDK, and a collector of OTLP over HTTP on this machine.

const { once } = require('node:events')
const { createServer } = require('node:http')
const { join } = require('node:path')
const Fastify = require('fastify')
const { context, propagation, SpanKind, SpanStatusCode, trace } = require('@opentelemetry/api')
const { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace-node')
const extismHost = require('extism-host/fastify')
const { ExtismHostInstrumentation } = require('extism-host/otel')
const { MemoryStore } = require('..')
const { guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { runNode } = require('./support/processes.js')

const open = pluginsOfEachTest()
const none = () => {}
const exporter = new InMemorySpanExporter()

let wasm
let provider
let instrumentation

async function listen (handler) {
  const server = createServer(handler).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return server
}

async function close (server) {
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
}

const urlOf = (server) => `http://127.0.0.1:${server.address().port}`

beforeAll(async () => {
  const sources = ['asking', 'http', 'store', 'many']
  wasm = Object.fromEntries(await Promise.all(sources.map(async (name) => [name, await guest(name)])))
  provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
  provider.register()
  instrumentation = new ExtismHostInstrumentation()
})

afterAll(async () => {
  instrumentation.disable()
  await provider.shutdown()
  trace.disable()
  context.disable()
  propagation.disable()
})

/** The spans that end during `work`. */
async function spansOf (work) {
  exporter.reset()
  await work()
  return exporter.getFinishedSpans()
}

const byName = (spans, name) => spans.find((span) => span.name === name)
const idOf = (span) => span.spanContext().spanId
const nanoseconds = ([seconds, rest]) => BigInt(seconds) * 1_000_000_000n + BigInt(rest)

test('a call is a span, with its plugin, waiting time and bytes, below the span that is active', async () => {
  const plugin = await open(wasm.many, { name: 'many' })
  const spans = await spansOf(() => trace.getTracer('test').startActiveSpan('parent', async (span) => {
    await plugin.call('echo', 'four').catch(() => {})
    span.end()
  }))
  const call = byName(spans, 'many echo')
  expect(call).toMatchObject({ kind: SpanKind.INTERNAL, instrumentationScope: { name: '@extism-host/otel' }, parentSpanContext: { spanId: idOf(byName(spans, 'parent')) } })
  expect(call.attributes).toMatchObject({
    'extism.plugin.name': 'many',
    'extism.plugin.version': plugin.stats().version,
    'code.function.name': 'echo',
    'extism.input.bytes': 4,
    'extism.output.bytes': 4,
    'extism.queue.duration_ms': expect.any(Number),
    'extism.run.duration_ms': expect.any(Number)
  })
})

test('host functions run below their call, and spans that they make are children of theirs', async () => {
  const ask = async () => {
    await null
    trace.getTracer('test').startSpan('query').end()
    return 'answer'
  }
  const plugin = await open(wasm.asking, { name: 'asking', functions: { 'extism:host/user': { ask }, numbers: { mix: none, i32: none, f32: none, nothing: none } } })
  const spans = await spansOf(() => plugin.call('ask'))
  const [call, host, query] = ['asking ask', 'ask', 'query'].map((name) => byName(spans, name))
  expect(host.parentSpanContext.spanId).toBe(idOf(call))
  expect(query.parentSpanContext.spanId).toBe(idOf(host))
  expect(host.attributes['code.function.name']).toBe('extism:host/user.ask')
})

test('a synchronous call and a failed one end, with the code as the type of the error', async () => {
  const plugin = await open(wasm.many, { name: 'many' })
  const spans = await spansOf(async () => {
    plugin.callSync('echo', 'four')
    await plugin.call('trap').catch(() => {})
  })
  expect(byName(spans, 'many echo').status.code).not.toBe(SpanStatusCode.ERROR)
  const failed = byName(spans, 'many trap')
  expect(failed.status.code).toBe(SpanStatusCode.ERROR)
  expect(failed.attributes['error.type']).toBe('TRAP')
  expect(failed.events.map(({ name }) => name)).toEqual(['exception'])
})

test('operations of the store are client spans of a database', async () => {
  const plugin = await open(wasm.store, { name: 'store', store: new MemoryStore([['key', 'value']]) })
  const spans = await spansOf(() => plugin.call('get', 'key').catch(() => {}))
  const operation = byName(spans, 'hostStoreGet memory')
  const call = byName(spans, 'store get')
  expect(operation).toMatchObject({ kind: SpanKind.CLIENT, parentSpanContext: { spanId: idOf(call) } })
  expect(operation.attributes).toMatchObject({ 'db.system.name': 'memory', 'db.operation.name': 'hostStoreGet' })
  expect(nanoseconds(operation.startTime)).toBeGreaterThanOrEqual(nanoseconds(call.startTime))
  expect(nanoseconds(operation.endTime)).toBeLessThanOrEqual(nanoseconds(call.endTime))
})

test('a guest\'s request is a client span, and continues the trace at the server', async () => {
  let traceparent
  const server = await listen((request, response) => {
    traceparent = request.headers.traceparent
    response.writeHead(503).end()
  })
  const plugin = await open(wasm.http, { name: 'http', allowedHosts: ['127.0.0.1'] })
  const spans = await spansOf(() => plugin.call('body', `${JSON.stringify({ url: `${urlOf(server)}/path?secret` })}\n`))
  const { port } = server.address()
  await close(server)
  const call = byName(spans, 'http body')
  const request = byName(spans, 'GET')
  expect(request).toMatchObject({ kind: SpanKind.CLIENT, parentSpanContext: { spanId: idOf(call) }, status: { code: SpanStatusCode.ERROR } })
  expect(request.attributes).toMatchObject({
    'http.request.method': 'GET',
    'http.response.status_code': 503,
    'url.full': `http://127.0.0.1:${port}/path`,
    'server.address': '127.0.0.1',
    'server.port': port,
    'error.type': '503'
  })
  expect(traceparent).toBe(`00-${call.spanContext().traceId}-${idOf(call)}-01`)
})

test('an app with @fastify/otel sends its spans to a collector, and logs the trace of a failed call', async () => {
  const spans = []
  const collector = await listen((request, response) => {
    const chunks = []
    request.on('data', (chunk) => chunks.push(chunk))
    request.on('end', () => {
      const { resourceSpans } = JSON.parse(Buffer.concat(chunks))
      for (const { scopeSpans } of resourceSpans) for (const { scope, spans: sent } of scopeSpans) spans.push(...sent.map((span) => ({ ...span, scope: scope.name })))
      response.setHeader('content-type', 'application/json').end('{}')
    })
  })
  const app = await runNode([join(__dirname, 'support/otel-app.js')], { env: { OTEL_EXPORTER_OTLP_ENDPOINT: urlOf(collector) } })
  await close(collector)
  const parents = new Map(spans.map((span) => [span.spanId, span]))
  const call = byName(spans, 'many echo')
  const handler = parents.get(call.parentSpanId)
  expect(handler).toMatchObject({ scope: '@fastify/otel', traceId: call.traceId })
  const line = app.output.trim().split('\n').map((line) => JSON.parse(line)).find(({ code }) => code === 'TRAP')
  expect(line).toMatchObject({ plugin: 'many', function: 'trap', trace_id: byName(spans, 'many trap').traceId, reqId: expect.any(String) })
})

test('a reload is a span', async () => {
  const app = Fastify()
  app.register(extismHost, { plugins: { many: wasm.many } })
  await app.ready()
  const spans = await spansOf(() => app.extism.reload('many'))
  expect(byName(spans, 'reload many').attributes).toMatchObject({ 'extism.plugin.name': 'many', 'extism.plugin.version': app.extism.plugin('many').stats().version })
  await app.close()
})

test('works with the registration of the SDK, and stops when it is disabled', async () => {
  const own = new ExtismHostInstrumentation({ enabled: false })
  own.setTracerProvider(provider)
  own.setMeterProvider()
  expect(own.getConfig()).toEqual({ enabled: false })
  instrumentation.disable()
  const plugin = await open(wasm.many, { name: 'many' })
  expect(await spansOf(() => plugin.call('echo', 'four'))).toEqual([])
  own.enable()
  expect(await spansOf(() => plugin.call('echo', 'four'))).toHaveLength(1)
  own.disable()
  instrumentation.enable()
})
