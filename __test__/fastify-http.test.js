'use strict'

const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { assemble } = require('./support/guest.js')

// Has the host answer: what a test does with the request is the guest's answer.
const ASKING = `(module
  (import "extism:host/user" "handle" (func $handle (param i64) (result i64)))
  (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (func (export "handle") (local $answer i64)
    (call $output_set (local.tee $answer (call $handle (call $input_offset))) (call $length (local.get $answer)))))`

let wasm
let app
let answer
let seen

beforeAll(async () => {
  wasm = await assemble(ASKING)
  const handle = (context, input) => {
    seen = context.read(input).json()
    return typeof answer === 'string' || answer instanceof Uint8Array ? answer : JSON.stringify(answer)
  }
  app = Fastify()
  app.register(extismHost, {
    plugins: { asking: { source: wasm, functions: { 'extism:host/user': { handle } } } },
    routes: [
      { method: ['GET', 'POST', 'DELETE'], url: '/users/:id/*', plugin: 'asking', function: 'handle', mode: 'http' },
      { method: 'GET', url: '/page', plugin: 'asking', function: 'handle', mode: 'http', contentType: 'text/html' }
    ]
  })
})
beforeEach(() => { answer = {} })
afterAll(() => app.close())

const post = (payload, headers) => app.inject({ method: 'POST', url: '/users/7/x', payload, headers })

describe('a function of the mode http', () => {
  test('gets the request', async () => {
    await app.inject({
      method: 'POST',
      url: '/users/J%C3%A4ne/a/b?q=1&q=2&empty=',
      headers: { 'X-One': 'üb', cookie: 'a=b', 'content-type': 'text/plain', host: 'example.com', 'user-agent': 'me' },
      payload: 'Grüße 👋'
    })
    expect(seen).toEqual({
      method: 'POST',
      url: '/users/J%C3%A4ne/a/b?q=1&q=2&empty=',
      path: '/users/J%C3%A4ne/a/b',
      query: { q: ['1', '2'], empty: '' },
      params: { id: 'Jäne', '*': 'a/b' },
      headers: { 'x-one': 'üb', cookie: 'a=b', 'content-type': 'text/plain', host: 'example.com', 'user-agent': 'me', 'content-length': '12' },
      body: 'Grüße 👋',
      isBase64: false
    })
  })

  test('gets a body that is not UTF-8 as base64', async () => {
    await post(Buffer.from([0xFF, 0xFE]))
    expect(seen).toMatchObject({ body: '//4=', isBase64: true })
  })

  test.each(['GET', 'DELETE', 'POST', 'HEAD'])('gets a %s without a body', async (method) => {
    expect((await app.inject({ method, url: '/users/7/x' })).statusCode).toBe(200)
    expect(seen).toMatchObject({ method, path: '/users/7/x', query: {}, body: '', isBase64: false })
  })

  test('answers with a status, headers and a body', async () => {
    answer = { status: 404, headers: { 'Content-Type': 'application/problem+json', 'x-one': '1' }, body: '{"title":"nö"}' }
    const response = await post()
    expect([response.statusCode, response.body]).toEqual([404, '{"title":"nö"}'])
    expect(response.headers).toMatchObject({ 'content-type': 'application/problem+json', 'x-one': '1', 'content-length': '15' })
  })

  test('answers with bytes', async () => {
    answer = { body: '//4=', isBase64: true }
    const response = await post()
    expect([...response.rawPayload]).toEqual([0xFF, 0xFE])
    expect(response.headers['content-type']).toBe('application/octet-stream')
  })

  test('answers with several values of a header', async () => {
    answer = { headers: { 'set-cookie': ['a=1', 'b=2'], vary: ['accept', 'origin'] } }
    const { headers } = await post()
    expect(headers).toMatchObject({ 'set-cookie': ['a=1', 'b=2'], vary: ['accept', 'origin'] })
  })

  test('responds with the type of the route, or that of text', async () => {
    answer = { body: 'hello' }
    expect((await app.inject('/page')).headers['content-type']).toBe('text/html')
    expect((await post()).headers['content-type']).toBe('text/plain; charset=utf-8')
    answer = { body: 'hello', headers: { 'content-type': 'text/css' } }
    expect((await app.inject('/page')).headers['content-type']).toBe('text/css')
  })

  test.each([204, 304, 599])('answers with %d and no body', async (status) => {
    answer = { status }
    const response = await post()
    expect([response.statusCode, response.body, response.headers['content-type']]).toEqual([status, '', undefined])
  })
})

describe('an invalid output is a 502, with the reason in the log only,', () => {
  test.each([
    ['that is empty', ''],
    ['that is no JSON', 'hello'],
    ['that is no UTF-8', Buffer.from([0xFF])],
    ['that is not an object', [1]],
    ['that is null', 'null'],
    ['with an unknown property', { statusCode: 200 }],
    ['with a status that is a string', { status: '200' }],
    ['with an invalid status', { status: 99 }],
    ['with a status beyond 599', { status: 600 }],
    ['with an interim status', { status: 103 }],
    ['with headers that are none', { headers: ['a'] }],
    ['with a header with a line feed', { headers: { a: 'b\r\nset-cookie: c' } }],
    ['with a header in an array with a line feed', { headers: { a: ['b', 'c\nd'] } }],
    ['with a header beyond Latin-1', { headers: { a: '👋' } }],
    ['with a header that is a number', { headers: { a: 1 } }],
    ['with an invalid header name', { headers: { 'a b': 'c' } }],
    ['with a header without a name', { headers: { '': 'c' } }],
    ['with two types', { headers: { 'content-type': ['text/plain', 'text/html'] } }],
    ['with __proto__', '{"headers": {"__proto__": ["a"]}}'],
    ...['Transfer-Encoding', 'connection', 'Content-Length', 'upgrade', 'trailer', 'keep-alive'].map((name) => [`with ${name}`, { headers: { [name]: '5' } }]),
    ['with a body that is not a string', { body: { a: 1 } }],
    ['with a body that is not base64', { body: 'nö', isBase64: true }],
    ['with isBase64 that is not a boolean', { body: 'a', isBase64: 'yes' }]
  ])('%s', async (name, value) => {
    answer = value
    const response = await post()
    expect(response.json()).toEqual({ statusCode: 502, code: 'BAD_PLUGIN_RESPONSE', error: 'Bad Gateway', message: 'the plugin gave no valid response' })
  })
})
