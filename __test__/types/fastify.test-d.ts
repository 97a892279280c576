import Fastify from 'fastify'
import { Registry } from 'prom-client'
import { expectError, expectType } from 'tsd'
import extismHost, { extismHost as byName } from '@extism-host/fastify'
import type { HostedPlugin } from '@extism-host/fastify'
import { createPlugin, MemoryStore } from '../..'
import type { PluginOutput, PluginStats } from '../..'

const app = Fastify()
const store = new MemoryStore()

app.register(extismHost, {
  plugins: {
    file: 'greeter.wasm',
    definition: { source: 'greeter.wasm', instances: 2, useWasi: true, smoke: { function: 'greet', input: 'x', expect: new Uint8Array(1), timeoutMs: 5 } },
    fetched: fetch('https://example.com/greeter.wasm'),
    given: await createPlugin('greeter.wasm')
  },
  store: { store, prefix: 'greeter:', access: 'write' },
  routes: [
    { url: '/greet', plugin: 'file', function: 'greet' },
    { method: ['GET', 'POST'], url: '/', plugin: 'file', function: 'greet', mode: 'raw', contentType: 'text/plain', timeoutMs: 100, bodyLimit: 10 }
  ],
  prefix: '/api'
})
app.register(byName, { plugins: { file: 'greeter.wasm' }, health: true, metrics: { prefix: '/internal/metrics' }, admin: { token: '0123456789abcdef' } })
expectError(app.register(extismHost, { plugins: { file: 'greeter.wasm' }, admin: {} }))
expectError(app.register(extismHost, { plugins: { file: 42 } }))
expectError(app.register(extismHost, {}))
expectError(app.register(extismHost, { plugins: { file: 'greeter.wasm' }, routes: [{ url: '/' }] }))
app.register(extismHost, {
  plugins: { file: 'greeter.wasm' },
  routes: [{
    url: '/', plugin: 'file', function: 'f', schema: { body: {} }, config: { role: 'admin' }, preHandler: async (request, reply) => {}, onRequest: [], errors: { PLUGIN_ERROR: 422 }
  }],
  health: { config: { isPublic: true } },
  metrics: { register: new Registry(), config: { rateLimit: { max: 1 } } }
})
expectError(app.register(extismHost, { plugins: { file: 'greeter.wasm' }, routes: [{ url: '/', plugin: 'file', function: 'f', errors: { TRAP: 422 } }] }))
expectError(app.register(extismHost, { plugins: { file: 'greeter.wasm' }, routes: [{ url: '/', plugin: 'file', function: 'f', handler: () => {} }] }))
app.register(extismHost, {
  plugins: { file: { source: 'greeter.wasm', schema: { exports: { greet: {} } } } },
  admin: { token: '0123456789abcdef', uploads: { directory: 'uploads', maxBytes: 1_000_000 } },
  docs: { prefix: '/reference', info: { title: 'Greetings', version: '1' } }
})
app.register(extismHost, { plugins: { file: 'greeter.wasm' }, docs: true })
expectError(app.register(extismHost, { plugins: { file: 'greeter.wasm' }, docs: 'docs' }))
expectError(app.register(extismHost, { plugins: { file: 'greeter.wasm' }, admin: { token: '0123456789abcdef', uploads: {} } }))

expectType<string[]>(app.extism.names)
expectType<HostedPlugin>(app.extism.plugin('file'))
expectType<Promise<PluginOutput | null>>(app.extism.plugin('file').call('greet', 'Jane', { user: 1 }, { timeoutMs: 5 }))
expectType<PluginStats>(app.extism.plugin('file').stats())
expectType<Promise<void>>(app.extism.reload('file'))
expectType<Promise<void>>(app.extism.update({ file: 'new.wasm', added: { source: 'added.wasm', useWasi: true }, old: null }))
expectError(app.extism.update({ file: 5 }))
expectType<void>(app.extism.drain())

app.register(extismHost, {
  plugins: { orders: 'orders.wasm' },
  connections: { events: { nats: 'nats://localhost', user: 'a' }, sensors: { mqtt: 'mqtt://localhost' } },
  triggers: [
    { nats: 'greet.*', queue: 'workers', connection: 'events', plugin: 'orders', function: 'greet', concurrency: 1, timeoutMs: 1 },
    { jetStream: 'orders.*', stream: 'ORDERS', consumer: 'workers', plugin: 'orders', function: 'order', maxDeliver: 3, deadLetterSubject: 'dead.orders' },
    { mqtt: 'sensors/+', clientId: 'a', plugin: 'orders', function: 'measure', backoffMs: [1_000] }
  ]
})
expectError(app.register(extismHost, { plugins: { orders: 'orders.wasm' }, triggers: [{ jetStream: 'orders.*', plugin: 'orders', function: 'order' }] }))

app.register(extismHost, {
  plugins: {
    orders: {
      source: 'orders.wasm',
      connect: {
        events: { connection: 'broker', publish: ['orders.*'], request: [], maxUnflushedBytes: 1 },
        sensors: { publish: ['sensors/+'], retain: [], maxUnacknowledged: 1, timeoutMs: 1 },
        cache: { read: ['news:*'], write: [], maxKeys: 1, maxValueBytes: 1 },
        db: { connection: 'database', statements: { all: 'SELECT 1' }, readOnly: false, maxRows: 1, maxBytes: 1 }
      }
    }
  },
  connections: { broker: { nats: 'nats://localhost' }, sensors: { mqtt: 'mqtt://localhost' }, cache: { redis: 'redis://localhost' }, database: { postgres: 'postgresql://localhost', max: 4 } }
})
expectError(app.register(extismHost, { plugins: { orders: { source: 'orders.wasm', connect: { db: { statements: 'all' } } } } }))
expectError(app.register(extismHost, { plugins: { orders: { source: 'orders.wasm', connect: ['db'] } } }))
