'use strict'

const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { guest } = require('./support/guest.js')

let many
let app

beforeAll(async () => { many = await guest('many') })
afterEach(async () => { await app?.close() })

function register (options, fastifyOptions) {
  app = Fastify(fastifyOptions)
  app.register(extismHost, { plugins: { many }, ...options })
  return app
}

describe('a route', () => {
  test('answers with what the plugin\'s function makes of the body', async () => {
    register({ routes: [{ method: 'POST', url: '/echo', plugin: 'many', function: 'echo' }] })
    const response = await app.inject({ method: 'POST', url: '/echo', payload: 'hello' })
    expect([response.statusCode, response.body]).toEqual([200, 'hello'])
    expect(response.headers['content-type']).toBe('application/octet-stream')
  })
})
