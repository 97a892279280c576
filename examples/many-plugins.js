'use strict'

// Several plugins in one app that share a store, each under its own prefix; a handler in JavaScript that calls plugins;
// and health checks, metrics and reloads:
//
//   curl -d 'Jane' http://localhost:7070/hello
//   curl -d 'Jane' http://localhost:7070/visits
//   curl http://localhost:7070/both/Jane
//   curl http://localhost:7070/health/ready
//   curl http://localhost:7070/metrics
//   curl -X POST -H "authorization: Bearer $ADMIN_TOKEN" http://localhost:7070/admin/plugins/visits/reload

const fastify = require('fastify')({ logger: true })
const { MemoryStore } = require('extism-host')

const store = new MemoryStore([['hello:hello', 'good morning'], ['hello:message', 'from the store']])
const contentType = 'text/plain; charset=utf-8'
const token = process.env.ADMIN_TOKEN

fastify.register(require('extism-host/fastify'), {
  plugins: {
    hello: {
      source: 'plugins/say-hello/say-hello.wasm',
      useWasi: true,
      instances: 2,
      timeoutMs: 1_000,
      store: { store, prefix: 'hello:' },
      smoke: { function: 'say_hello', input: 'nobody' }
    },
    visits: {
      source: 'plugins/visits-rust/visits.wasm',
      timeoutMs: 1_000,
      store: { store, prefix: 'visits:', access: 'write', maxKeys: 10_000 }
    }
  },
  store,
  routes: [
    { method: 'POST', url: '/hello', plugin: 'hello', function: 'say_hello', contentType },
    { method: 'POST', url: '/visits', plugin: 'visits', function: 'visit', contentType, timeoutMs: 100, bodyLimit: 1_000 }
  ],
  health: true,
  metrics: true,
  // Without a token, there are no admin routes.
  admin: token === undefined ? undefined : { token }
})

fastify.get('/both/:name', async ({ params, log }) => {
  const outputs = await Promise.all([
    fastify.extism.plugin('hello').call('say_hello', params.name, null, { logger: log }),
    fastify.extism.plugin('visits').call('visit', params.name, null, { logger: log })
  ])
  return outputs.map((output) => output.text()).join('\n')
})

fastify.listen({ port: Number(process.env.PORT ?? 7070) })
