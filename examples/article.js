'use strict'

// The article's service in ten lines: curl -d 'Jane Doe' http://localhost:7070

const fastify = require('fastify')({ logger: true })
const { MemoryStore } = require('extism-host')

fastify.register(require('extism-host/fastify'), {
  plugins: { hello: { source: 'plugins/say-hello/say-hello.wasm', useWasi: true, timeoutMs: 10_000 } },
  store: new MemoryStore([['hello', '👋 Hello World 🌍'], ['message', 'I 💜 Extism 😍']]),
  routes: [{ method: 'POST', url: '/', plugin: 'hello', function: 'say_hello', contentType: 'text/plain; charset=utf-8' }]
})
fastify.listen({ port: Number(process.env.PORT ?? 7070) })
