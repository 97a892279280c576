'use strict'

const { Agent, request } = require('node:http')
const { buildServer } = require('../server.js')
const { MemoryStore } = require('..')
const { guest } = require('./support/guest.js')
const { runNode, startServer } = require('./support/processes.js')

const ANSWER = '👋 Hello Jane Doe\nkey: hello, value: 👋 Hello World 🌍\nkey: message, value: I 💜 Extism 😍'

describe('the article\'s service', () => {
  let app

  beforeAll(async () => { app = await buildServer() })
  afterAll(() => app.close())

  function post (payload, headers) {
    return app.inject({ method: 'POST', url: '/', payload, headers })
  }

  test('answers the three lines, byte for byte', async () => {
    const response = await post('Jane Doe', { 'content-type': 'text/plain; charset=utf-8' })
    expect(response.statusCode).toBe(200)
    expect(response.headers['content-type']).toBe('text/plain; charset=utf-8')
    expect(response.rawPayload.equals(Buffer.from(ANSWER))).toBe(true)
  })

  test('answers with what the store holds now', async () => {
    app.store.set('hello', 'changed between two requests')
    expect((await post('Jane Doe')).body).toContain('key: hello, value: changed between two requests\n')
    app.store.set('hello', '👋 Hello World 🌍')
    expect((await post('Jane Doe')).body).toBe(ANSWER)
  })

  for (const type of ['application/json', 'application/octet-stream', 'application/x-www-form-urlencoded', ';;;', undefined]) {
    test(`takes a body of the type ${type}`, async () => {
      const response = await post('Jane Doe', type === undefined ? {} : { 'content-type': type })
      expect(response.statusCode).toBe(200)
      expect(response.body).toBe(ANSWER)
    })
  }

  test('passes bytes that are not UTF-8 unchanged', async () => {
    const response = await post(Buffer.from([0xFF, 0xFE]))
    expect(response.rawPayload.includes(Buffer.from([0xFF, 0xFE, 0x0A]))).toBe(true)
  })

  test('passes an empty input without a body', async () => {
    const response = await post(undefined)
    expect(response.statusCode).toBe(200)
    expect(response.body).toMatch(/^👋 Hello \n/)
  })

  test('refuses a body that is too large with 413', async () => {
    const response = await post(Buffer.alloc(10_000_000))
    expect(response.statusCode).toBe(413)
    expect(response.json()).toMatchObject({ statusCode: 413, code: 'FST_ERR_CTP_BODY_TOO_LARGE' })
  })

  test('knows no other route', async () => {
    expect((await app.inject('/')).statusCode).toBe(404)
  })
})

test('with isolation no request finds anything of another', async () => {
  const plugin = { useWasi: false, isolation: 'call', snapshot: true }
  const app = await buildServer({ wasm: await guest('many'), functionName: 'count', plugin })
  for (let i = 0; i < 5; i++) {
    const { rawPayload } = await app.inject({ method: 'POST', url: '/', payload: '' })
    expect([...rawPayload]).toEqual([1])
  }
  await app.close()
})

describe('a call that fails', () => {
  let wasm
  let app

  beforeAll(async () => { wasm = await guest('many') })
  afterEach(() => app.close())

  async function build (functionName, plugin) {
    app = await buildServer({ wasm, functionName, plugin })
    return app
  }

  test('by the plugin\'s error is a 500 with a code and without internals', async () => {
    await build('fail')
    const response = await app.inject({ method: 'POST', url: '/', payload: 'the password is 1234' })
    expect(response.statusCode).toBe(500)
    expect(response.json()).toEqual({
      statusCode: 500,
      code: 'PLUGIN_ERROR',
      error: 'Internal Server Error',
      message: 'the plugin gave no answer'
    })
  })

  test('by a trap is a 500 too', async () => {
    await build('trap')
    const response = await app.inject({ method: 'POST', url: '/' })
    expect(response.statusCode).toBe(500)
    expect(response.json().code).toBe('TRAP')
  })

  test('by its time limit is a 504, and the next one works', async () => {
    await build('loop_for_ever', { timeoutMs: 50 })
    for (let i = 0; i < 2; i++) {
      const response = await app.inject({ method: 'POST', url: '/' })
      expect(response.statusCode).toBe(504)
      expect(response.json().code).toBe('TIMEOUT')
    }
  })

  test('because the queue is full is a 503 with Retry-After', async () => {
    await build('compute', { maxQueue: 1 })
    const request = { method: 'POST', url: '/', payload: Buffer.from([20]) }
    const responses = await Promise.all([app.inject(request), app.inject(request)])
    expect(responses.map(({ statusCode }) => statusCode).sort()).toEqual([200, 503])
    const refused = responses.find(({ statusCode }) => statusCode === 503)
    expect(refused.headers['retry-after']).toBe('1')
    expect(refused.json().code).toBe('QUEUE_FULL')
  })

  test('because all threads are stuck is a 503 with Retry-After', async () => {
    const { Plugin } = require('..')
    await build('echo')
    const unavailable = Object.assign(new Error('all threads are stuck'), { code: 'UNAVAILABLE' })
    const call = jest.spyOn(Plugin.prototype, 'call').mockRejectedValueOnce(unavailable)
    const response = await app.inject({ method: 'POST', url: '/' })
    call.mockRestore()
    expect(response.statusCode).toBe(503)
    expect(response.headers['retry-after']).toBe('1')
    expect(response.json()).toMatchObject({ code: 'UNAVAILABLE', message: 'the plugin gave no answer' })
  })

  test('an empty output is an empty answer', async () => {
    await build('silent')
    const response = await app.inject({ method: 'POST', url: '/' })
    expect([response.statusCode, response.body]).toEqual([200, ''])
  })
})

test('a store of the caller\'s own can be given', async () => {
  const store = new MemoryStore([['hello', 'mine']])
  const app = await buildServer({ store })
  const { body } = await app.inject({ method: 'POST', url: '/', payload: 'x' })
  expect(body).toContain('key: hello, value: mine')
  await app.close()
})

describe('node server.js', () => {
  for (const signal of ['SIGTERM', 'SIGINT']) {
    test(`serves on a real socket, and ends cleanly on ${signal}, as its log tells`, async () => {
      const { child, ended, url } = await startServer({ INSTANCES: '1' })
      let log = ''
      child.stdout.on('data', (chunk) => { log += chunk })
      const response = await fetch(url, { method: 'POST', body: 'Jane Doe' })
      expect(await response.text()).toBe(ANSWER)
      child.kill(signal)
      expect(await ended).toEqual({ code: 0, signal: null })
      const lines = log.trim().split('\n').map((line) => JSON.parse(line))
      expect(lines.find(({ msg }) => msg === `shutting down on ${signal}`)).toMatchObject({ level: 30, signal })
      expect(lines.at(-1).msg).toBe('shut down')
    })
  }

  test('lets a request that is under way end, and does not wait for its client after that', async () => {
    const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
    const { join } = require('node:path')
    const directory = mkdtempSync(join(require('node:os').tmpdir(), 'extism-host-'))
    const wasm = join(directory, 'many.wasm')
    writeFileSync(wasm, await guest('many'))
    const { child, ended, url } = await startServer({ PLUGIN_WASM: wasm, PLUGIN_FUNCTION: 'compute' })
    // A client that keeps its connection for as long as it can.
    const agent = new Agent({ keepAlive: true })
    const answer = new Promise((resolve, reject) => {
      const posting = request(url, { agent, method: 'POST' }, (response) => response.resume().on('end', () => resolve(response.statusCode)))
      posting.on('error', reject).end('x')
    })
    await new Promise((resolve) => setTimeout(resolve, 20))
    child.kill()
    // With 1 it ends where it has waited for the client.
    expect({ status: await answer, ...await ended }).toEqual({ status: 200, code: 0, signal: null })
    agent.destroy()
    rmSync(directory, { recursive: true, maxRetries: 10 })
  })

  test.each(['trap', 'divide_by_zero', 'recurse'])('keeps serving when its plugin does what WebAssembly forbids: %s', async (functionName) => {
    const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
    const { join } = require('node:path')
    const directory = mkdtempSync(join(require('node:os').tmpdir(), 'extism-host-'))
    const wasm = join(directory, 'many.wasm')
    writeFileSync(wasm, await guest('many'))
    const { child, ended, url } = await startServer({ PLUGIN_WASM: wasm, PLUGIN_FUNCTION: functionName })
    try {
      for (let round = 0; round < 2; round++) {
        const response = await fetch(url, { method: 'POST', body: 'x' })
        expect([response.status, (await response.json()).code]).toEqual([500, 'TRAP'])
      }
    } finally {
      child.kill()
      rmSync(directory, { recursive: true, maxRetries: 10 })
    }
    expect(await ended).toEqual({ code: 0, signal: null })
  })

  test('takes the plugin and the function from the environment', async () => {
    const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
    const { join } = require('node:path')
    const directory = mkdtempSync(join(require('node:os').tmpdir(), 'extism-host-'))
    const wasm = join(directory, 'many.wasm')
    writeFileSync(wasm, await guest('many'))
    const { child, ended, url } = await startServer({ PLUGIN_WASM: wasm, PLUGIN_FUNCTION: 'echo' })
    const response = await fetch(url, { method: 'POST', body: 'echoed' })
    expect(await response.text()).toBe('echoed')
    child.kill()
    expect((await ended).code).toBe(0)
    rmSync(directory, { recursive: true, maxRetries: 10 })
  })

  const wrong = {
    'a missing plugin': [{ PLUGIN_WASM: '/no/such/plugin.wasm' }, /cannot start: cannot read "\/no\/such\/plugin\.wasm"/],
    'an invalid number of instances': [{ INSTANCES: 'many' }, /cannot start: instances must be/],
    'an invalid port': [{ PORT: 'http' }, /cannot start: .*port/]
  }
  for (const [name, [env, message]] of Object.entries(wrong)) {
    test(`says what is wrong with ${name}, and exits with 1`, async () => {
      const { code, errors } = await runNode(['server.js'], { env: { PORT: '0', HOST: '127.0.0.1', ...env } })
      expect(code).toBe(1)
      expect(errors).toMatch(message)
    })
  }
})
