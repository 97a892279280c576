'use strict'

// A host function in JavaScript next to the one in Rust: the plugin gets the request's user from the first, and looks
// that key up with hostMemoryGet.
//
//   npx wat2wasm examples/host-functions.wat -o host-functions.wasm
//   node examples/host-functions.js
//   curl -H 'x-user: jane' http://localhost:7070

const fastify = require('fastify')({ logger: true })
const { MemoryStore } = require('extism-host')

// In a call for a route, the host context is the request.
const user = (context) => context.hostContext().headers['x-user'] ?? 'nobody'

fastify.register(require('extism-host/fastify'), {
  plugins: {
    greeter: {
      source: process.env.PLUGIN_WASM ?? 'host-functions.wasm',
      timeoutMs: 1_000,
      functions: { 'extism:host/user': { user } }
    }
  },
  store: new MemoryStore([['jane', '👋 Jane'], ['nobody', 'who are you?']]),
  routes: [{ method: 'GET', url: '/', plugin: 'greeter', function: 'greet', contentType: 'text/plain; charset=utf-8' }]
})
fastify.listen({ port: Number(process.env.PORT ?? 7070) })
