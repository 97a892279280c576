'use strict'

// Two servers share a store on Redis: a plugin of one reads the data that a plugin of the other has written. Here, both
// are apps in one process; in production, each would run on its own machine:
//
//   redis-server &
//   REDIS_URL=redis://localhost:6379 node examples/two-servers.js
//   curl -d 'Jane' http://localhost:7070/visits
//   curl -d 'Joe' http://localhost:7071/visits

const Fastify = require('fastify')
const { openStore } = require('extism-host')

const contentType = 'text/plain; charset=utf-8'

async function start (port) {
  const store = await openStore(process.env.REDIS_URL ?? 'redis://localhost:6379')
  const fastify = Fastify({ logger: true })
  // The store closes after the plugins, because Fastify runs these hooks in reverse order.
  fastify.addHook('onClose', () => store.close())
  fastify.register(require('extism-host/fastify'), {
    plugins: { visits: { source: 'plugins/visits-rust/visits.wasm', timeoutMs: 2_000 } },
    store: { store, prefix: 'visits:', access: 'write', maxValueBytes: 1_000 },
    routes: [{ method: 'POST', url: '/visits', plugin: 'visits', function: 'visit', contentType }],
    health: true
  })
  await fastify.listen({ port })
}

async function main (ports) {
  for (const port of ports) await start(Number(port))
}

main((process.env.PORTS ?? '7070,7071').split(','))
