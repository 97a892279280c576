'use strict'

const Fastify = require('fastify')

/**
 * The service of ../../server.js with another way to compute the response. Parser, route, reply and logger are the same,
 * so that servers differ in nothing else. `answer` takes the body and returns an ArrayBuffer or a promise of one.
 */
async function serve (answer) {
  const app = Fastify({ logger: { level: process.env.LOG_LEVEL || 'info' } })

  app.addHook('onRequest', (request, reply, done) => {
    delete request.headers['content-type']
    done()
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))

  app.post('/', async (request, reply) => {
    const output = await answer(request.body)
    reply.type('text/plain; charset=utf-8')
    return Buffer.from(output)
  })

  await app.listen({ port: Number(process.env.PORT), host: process.env.HOST })
}

module.exports = { serve }
