'use strict'

// A program that serves plugins with an API page. Jest itself cannot load @fastify/swagger-ui: it needs `require` of ES modules.
// The environment variable OPTIONS has the registration's options, plugins of Fastify that come before it, and the plugin's schema.

const Fastify = require('fastify')
const { MemoryStore } = require('extism-host')

const { neighbours, schema, ...options } = JSON.parse(process.env.OPTIONS)
const app = Fastify({ logger: true })
for (const [name, options] of neighbours) app.register(require(name), options)
app.register(require('extism-host/fastify'), {
  plugins: { hello: { source: 'plugins/say-hello/say-hello.wasm', useWasi: true, schema } },
  store: new MemoryStore([['hello', 'Hi'], ['message', 'there']]),
  ...options
})
app.listen({ port: 0, host: '127.0.0.1' }).catch(({ code, message }) => console.error(code, message))
