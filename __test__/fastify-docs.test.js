'use strict'

// The API page, in a browser. With SCREENSHOTS=<directory>, the tests save a picture of it there.

const { join } = require('node:path')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { launch, openPage } = require('./support/chromium.js')
const { startServer } = require('./support/processes.js')

const SERVER = '__test__/support/docs-server.js'
const BODY = { type: 'object', required: ['name'], properties: { name: { type: 'string' } } }
const ROUTES = [
  { url: '/hello/raw', plugin: 'hello', function: 'say_hello', contentType: 'text/plain; charset=utf-8', errors: { PLUGIN_ERROR: 422 } },
  { url: '/hello/json', plugin: 'hello', function: 'say_hello', contentType: 'text/plain', schema: { body: BODY, summary: 'Greet by name' } }
]
const WAIT_MS = 20_000

let server
let browser

beforeAll(async () => { browser = await launch() }, 60_000)
afterAll(() => browser?.close())

afterEach(async () => {
  server?.child.kill()
  await server?.ended
  server = undefined
})

/** Starts a server; `neighbours` are plugins of Fastify with their options. Returns its URL. */
async function listen (options, neighbours = []) {
  server = await startServer({ OPTIONS: JSON.stringify({ routes: ROUTES, docs: true, ...options, neighbours }) }, SERVER)
  return server.url
}

const describedPaths = async (root, path = '/docs') => (await (await fetch(`${root}${path}/json`)).json()).paths

/** Opens the route with this path, sends an input, and returns the status and the body that the page shows. */
async function tryRoute (page, path, input) {
  const route = page.locator('.opblock').filter({ has: page.locator(`[data-path="${path}"]`) })
  await route.locator('.opblock-summary-control').click()
  await route.locator('.try-out__btn').click()
  await route.locator('textarea.body-param__text').fill(input)
  await route.locator('.execute').click()
  const response = route.locator('.live-responses-table .response')
  return [(await response.locator('.response-col_status').innerText()).trim(), await response.locator('.response-col_description pre').first().innerText()]
}

async function savePicture (page) {
  await page.addStyleTag({ content: '.swagger-ui textarea.body-param__text { height: 70px; min-height: 0 } .responses-table:not(.live-responses-table) .response:nth-child(n + 4) { display: none }' })
  await page.locator('.opblock.is-open').screenshot({ path: join(process.env.SCREENSHOTS, 'api-page.png') })
}

async function openDocs (root, path = '/docs') {
  const opened = await openPage(browser, root, { viewport: { width: 1200, height: 1000 } })
  opened.page.setDefaultTimeout(WAIT_MS)
  await opened.page.goto(root + path)
  await opened.page.waitForSelector('.opblock')
  return opened
}

test('the page shows each route with its plugin, function, input and errors, and runs the plugin', async () => {
  const root = await listen()
  const { page, problems } = await openDocs(root)
  expect(await page.locator('.opblock-tag').allInnerTexts()).toEqual([expect.stringContaining('hello')])
  expect(await page.locator('.opblock-summary-description').allInnerTexts()).toEqual(expect.arrayContaining(['Run say_hello of hello', 'Greet by name']))

  const [status, output] = await tryRoute(page, '/hello/raw', 'Jane')
  expect(status).toBe('200')
  expect(output).toMatch(/^👋 Hello Jane\nkey: hello, value: Hi/)
  expect(await page.locator('.opblock.is-open').innerText()).toMatch(/The input is the body[^]*The output of say_hello[^]*PLUGIN_ERROR, with the message of the plugin[^]*TIMEOUT/)
  if (process.env.SCREENSHOTS) await savePicture(page)

  expect(await tryRoute(page, '/hello/json', '{ "name": "Joe" }')).toEqual(['200', expect.stringContaining('Hello {"name":"Joe"}')])
  expect(problems).toEqual([])
  await page.close()
}, 90_000)

test('the page works beside helmet, under a prefix, and may have another place and title', async () => {
  const root = await listen({ prefix: '/api', docs: { prefix: '/reference', info: { title: 'Greetings', version: '3' } } }, [['@fastify/helmet']])
  const { page, problems } = await openDocs(root, '/api/reference')
  expect(await page.locator('.info .title').innerText()).toMatch(/^Greetings/)
  expect(await tryRoute(page, '/api/hello/raw', 'Jane')).toEqual(['200', expect.stringContaining('Hello Jane')])
  expect(problems).toEqual([])
  await page.close()
}, 90_000)

describe('the description', () => {
  test('joins the @fastify/swagger and the page of the app', async () => {
    const root = await listen({}, [['@fastify/swagger', { openapi: { info: { title: 'Mine', version: '2' } } }], ['@fastify/swagger-ui', { routePrefix: '/mine' }]])
    const { info, paths } = await (await fetch(`${root}/mine/json`)).json()
    expect(info.title).toBe('Mine')
    expect(paths['/hello/raw'].post).toMatchObject({ tags: ['hello'], summary: 'Run say_hello of hello' })
    expect((await fetch(`${root}/docs`)).status).toBe(404)
  })

  test('has the errors of a route, and what the route says itself', async () => {
    const response = { 200: { description: 'A greeting', type: 'string' }, 503: { description: 'Come back', type: 'string' } }
    const own = { url: '/mine', plugin: 'hello', function: 'say_hello', schema: { tags: ['greetings'], response } }
    const paths = await describedPaths(await listen({ routes: [...ROUTES, own] }))
    const described = (path) => Object.fromEntries(Object.entries(paths[path].post.responses).map(([status, { description }]) => [status, description]))
    expect(described('/hello/raw')).toEqual({
      200: 'The output of say_hello',
      413: 'FST_ERR_CTP_BODY_TOO_LARGE',
      422: 'PLUGIN_ERROR, with the message of the plugin',
      500: 'Any other error of the plugin',
      503: 'QUEUE_FULL, UNAVAILABLE, CLOSED, STORE_UNAVAILABLE, OUT_OF_RESOURCES',
      504: 'TIMEOUT'
    })
    expect(described('/hello/json')).toMatchObject({ 400: 'FST_ERR_VALIDATION', 415: 'FST_ERR_CTP_INVALID_MEDIA_TYPE' })
    expect(described('/mine')).toMatchObject({ 200: 'A greeting', 503: 'Come back', 504: 'TIMEOUT' })
    expect(paths['/mine'].post.tags).toEqual(['greetings'])
  })

  test('has the input and the output by the schema of the plugin, in which a person has a friend', async () => {
    const person = { type: 'object', required: ['name'], properties: { name: { type: 'string' }, friend: { $ref: '#/components/schemas/Person' } } }
    const io = { $ref: '#/components/schemas/Person', contentType: 'application/json' }
    const schema = { exports: { say_hello: { input: io, output: io } }, components: { schemas: { Person: person } } }
    const root = await listen({ schema, routes: [{ url: '/hello', plugin: 'hello', function: 'say_hello' }] })
    const { requestBody, responses } = (await describedPaths(root))['/hello'].post
    const described = { type: 'object', required: ['name'], properties: { name: { type: 'string' }, friend: {} } }
    expect(requestBody.content).toEqual({ 'application/json': { schema: described } })
    expect(responses[200].content).toEqual({ 'application/json': { schema: described } })
  })

  test('has no body for GET, and no operators\' routes', async () => {
    const paths = await describedPaths(await listen({
      health: true,
      metrics: true,
      admin: { token: 'a token that nobody can guess' },
      routes: [{ method: ['GET', 'POST'], url: '/any/:id', plugin: 'hello', function: 'say_hello', mode: 'http' }]
    }))
    expect(Object.keys(paths)).toEqual(['/any/{id}'])
    expect(paths['/any/{id}'].get).toMatchObject({ parameters: [{ name: 'id', in: 'path' }], responses: { 502: { description: 'BAD_PLUGIN_RESPONSE' } } })
    expect(paths['/any/{id}'].get.requestBody).toBeUndefined()
  })
})

test('the API page exists only with docs', async () => {
  const root = await listen({ docs: undefined })
  expect((await fetch(`${root}/docs`)).status).toBe(404)
})

test.each([[5], [{ prefix: 'docs' }], [{ title: 'x' }], [{ info: 'x' }]])('docs: %j is refused', async (docs) => {
  const app = Fastify()
  app.register(extismHost, { plugins: { hello: 'plugins/say-hello/say-hello.wasm' }, docs })
  await expect(app.ready()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('docs') })
})
