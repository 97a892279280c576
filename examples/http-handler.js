'use strict'

// A plugin that handles HTTP itself: it gets the request as JSON, and returns the status, headers and body of the
// response.
//
//   npx wat2wasm examples/http-handler.wat -o http-handler.wasm
//   node examples/http-handler.js
//   curl -i http://localhost:7070/anything; curl -i -X DELETE http://localhost:7070/anything

const fastify = require('fastify')({ logger: true })

fastify.register(require('extism-host/fastify'), {
  plugins: { site: { source: process.env.PLUGIN_WASM ?? 'http-handler.wasm', timeoutMs: 1_000 } },
  routes: [{ method: ['GET', 'POST', 'DELETE'], url: '/*', plugin: 'site', function: 'handle', mode: 'http' }]
})
fastify.listen({ port: Number(process.env.PORT ?? 7070) })
