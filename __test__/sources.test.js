'use strict'

// What createPlugin loads: from bytes, files, the network, and manifests in every form.

const { createHash } = require('node:crypto')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { createServer } = require('node:http')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { pathToFileURL } = require('node:url')
const vm = require('node:vm')
const { createPlugin, precompile } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

const open = pluginsOfEachTest()

let directory
let wasm
let path
let server
let base
let paths
/** What the server answers, by path: (request, response) => void. */
let routes

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  wasm = await guest('many')
  path = join(directory, 'many.wasm')
  writeFileSync(path, wasm)
  server = createServer((request, response) => {
    const { pathname } = new URL(request.url, 'http://localhost')
    paths.push(pathname)
    routes[pathname](request, response)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  base = `http://127.0.0.1:${server.address().port}`
})

afterAll(() => {
  rmSync(directory, { recursive: true, maxRetries: 10 })
  server.closeAllConnections()
  return new Promise((resolve) => server.close(resolve))
})

const send = (type, body, status = 200) => (request, response) => {
  response.writeHead(status, type === undefined ? {} : { 'content-type': type })
  response.end(body)
}

beforeEach(() => {
  paths = []
  routes = {
    '/plugin.wasm': send('application/wasm', wasm),
    '/octets': send('application/octet-stream', wasm),
    '/untyped': send(undefined, wasm),
    '/typed': send('Application/WASM; charset=binary', wasm),
    '/page': send('text/html', '<p>secret</p>'),
    '/missing': send('application/wasm', 'nothing', 404),
    '/broken': (request, response) => response.destroy(),
    '/cut': (request, response) => {
      response.writeHead(200, { 'content-type': 'application/wasm', 'content-length': wasm.length })
      response.write(wasm.subarray(0, 100), () => response.destroy())
    },
    '/moved': (request, response) => response.writeHead(302, { location: '/plugin.wasm' }).end(),
    '/manifest.json': send('application/json; charset=utf-8', json({ wasm: [{ url: `${base}/plugin.wasm` }], config: { who: 'network' } })),
    '/manifest.txt': send('text/json', json({ wasm: [{ data: wasm.toString('base64') }] }))
  }
})

const json = (value) => JSON.stringify(value)
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex')

async function echoes (source, options) {
  const plugin = await open(source, options)
  return (await plugin.call('echo', 'hello')).text()
}

describe('a plugin is loaded from', () => {
  const sources = {
    'an http: URL as a string': () => `${base}/plugin.wasm`,
    'an http: URL': () => new URL(`${base}/plugin.wasm`),
    'a URL of octets': () => `${base}/octets`,
    'a URL without a content-type': () => `${base}/untyped`,
    'a URL whose content-type has parameters and capitals': () => `${base}/typed`,
    'a URL that redirects': () => `${base}/moved`,
    'a URL of a manifest': () => `${base}/manifest.json`,
    'a URL of a manifest as text/json, with base64': () => `${base}/manifest.txt`,
    'a Response': () => fetch(`${base}/plugin.wasm`),
    'a Response of a manifest': () => fetch(`${base}/manifest.json`),
    'a Response without a URL': () => new Response(wasm),
    'something that is a Response elsewhere': () => ({
      [Symbol.toStringTag]: 'Response', ok: true, url: '', headers: new Headers(), arrayBuffer: async () => wasm
    }),
    'a URL of another realm': () => Object.assign(Object.create({ [Symbol.toStringTag]: 'URL' }), { toString: () => `${base}/plugin.wasm` }),
    'a promise': () => Promise.resolve(new URL(`${base}/plugin.wasm`)),
    'JSON with a path': () => json({ wasm: [{ path }] }),
    'JSON with base64, after white space': () => `\n ${json({ wasm: [{ data: wasm.toString('base64') }] })}`,
    'JSON with a file: URL': () => json({ wasm: [{ url: pathToFileURL(path).href }] }),
    'a manifest with a URL': () => ({ wasm: [{ url: new URL(`${base}/plugin.wasm`), hash: sha256(wasm) }] }),
    'a manifest with a URL as a string': () => ({ wasm: [{ url: `${base}/untyped`, name: 'main' }] }),
    'a manifest with a Response': async () => ({ wasm: [{ response: await fetch(`${base}/octets`) }] }),
    'a manifest with base64': () => ({ wasm: [{ data: wasm.toString('base64') }] }),
    'a manifest with bytes of another realm': () =>
      ({ wasm: [{ data: vm.runInNewContext('Uint8Array.from(bytes)', { bytes: [...wasm] }) }] })
  }
  for (const [name, source] of Object.entries(sources)) {
    test(name, async () => {
      expect(await echoes(source())).toBe('hello')
    })
  }
})

describe('createPlugin rejects', () => {
  const cases = {
    'a status that is not ok': () => [`${base}/missing`, 'FETCH_FAILED', /\/missing": the status is 404/],
    'a Response whose status is not ok': () => [fetch(`${base}/missing`), 'FETCH_FAILED', /404/],
    'a manifest item whose status is not ok': () => [{ wasm: [{ url: `${base}/missing` }] }, 'FETCH_FAILED', /404/],
    'a connection that breaks': () => [`${base}/broken`, 'FETCH_FAILED', /\/broken/],
    'an answer that is cut off': () => [`${base}/cut`, 'FETCH_FAILED', /\/cut/],
    'a port where nobody listens': () => ['http://127.0.0.1:1/plugin.wasm', 'FETCH_FAILED', /cannot fetch/],
    'another content-type': () => [`${base}/page`, 'INVALID_ARGUMENT', /text\/html; it must be one of application\/wasm/],
    'a manifest instead of a module': () => [{ wasm: [{ url: `${base}/manifest.json` }] }, 'INVALID_ARGUMENT', /must be a module, not a manifest/],
    'a Response that has been read': async () => {
      const response = await fetch(`${base}/plugin.wasm`)
      await response.arrayBuffer()
      return [response, 'INVALID_ARGUMENT', /clone/]
    },
    'an invalid "response"': () => [{ wasm: [{ response: wasm }] }, 'INVALID_ARGUMENT', /must be a Response/],
    'a URL of another protocol': () => [new URL('ftp://example.com/plugin.wasm'), 'INVALID_ARGUMENT', /http:, https: or file:/],
    'an invalid "url"': () => [{ wasm: [{ url: 'plugin.wasm' }] }, 'INVALID_ARGUMENT', /is not a valid URL/],
    'a file: URL of another machine': () => ['file://example.com/plugin.wasm', 'INVALID_ARGUMENT', /this machine/],
    'JSON without modules': () => ['{}', 'INVALID_ARGUMENT', /must be a path/],
    'JSON with data that names memory of this process': () =>
      ['{"wasm": [{"data": {"ptr": 1, "len": 1}}]}', 'INVALID_ARGUMENT', /must be bytes or base64/],
    'data that is not base64': () => [{ wasm: [{ data: 'plugin.wasm' }] }, 'INVALID_ARGUMENT', /base64/],
    'two sources of one module': () => [{ wasm: [{ path, url: `${base}/plugin.wasm` }] }, 'INVALID_ARGUMENT', /one of path, data/]
  }
  for (const [name, makeCase] of Object.entries(cases)) {
    test(name, async () => {
      const [source, code, message] = await makeCase()
      await expect(createPlugin(source)).rejects.toMatchObject({ code, message: expect.stringMatching(message) })
    })
  }

  test('invalid JSON without quoting it', async () => {
    const error = await createPlugin('{"config": {"password": "secret"}').catch((error) => error)
    expect(error).toMatchObject({ name: 'TypeError', code: 'INVALID_ARGUMENT', message: expect.stringContaining('not valid JSON') })
    expect(error.message).not.toContain('secret')
  })

  test('a URL that cannot be fetched, without quoting its query, user or password', async () => {
    const { host } = new URL(base)
    for (const url of [`${base}/missing?token=secret`, `http://user:secret@${host}/plugin.wasm`]) {
      const error = await createPlugin(url).catch((error) => error)
      expect(error.code).toMatch(/FETCH_FAILED|INVALID_ARGUMENT/)
      expect(error.message).not.toContain('secret')
    }
  })

  test('a wrong hash of a fetched module', async () => {
    for (const hash of ['00', 'no hexadecimal at all', sha256('other')]) {
      await expect(createPlugin({ wasm: [{ url: `${base}/plugin.wasm`, hash }] }))
        .rejects.toMatchObject({ code: 'HASH_MISMATCH', message: expect.stringContaining('hash mismatch') })
    }
  })
})

describe('a manifest from the network', () => {
  const items = {
    'a path': () => ({ path }),
    'a file: URL': () => ({ url: pathToFileURL(path).href })
  }
  for (const [name, item] of Object.entries(items)) {
    test(`must not name ${name}, however it comes`, async () => {
      routes['/evil'] = send('application/json', json({ wasm: [item()] }))
      for (const source of [`${base}/evil`, fetch(`${base}/evil`), new Response(json({ wasm: [item()] }), { headers: { 'content-type': 'text/json' } })]) {
        await expect(createPlugin(source)).rejects.toMatchObject({
          code: 'INVALID_ARGUMENT', message: expect.stringContaining('from the network must not')
        })
      }
    })
  }

  test('must not give the plugin files of this machine', async () => {
    for (const key of ['allowedPaths', 'allowed_paths']) {
      routes['/evil'] = send('application/json', json({ wasm: [{ url: `${base}/plugin.wasm` }], [key]: { '/': '/' } }))
      await expect(createPlugin(`${base}/evil`)).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT', message: expect.stringContaining('allowedPaths')
      })
    }
  })
})

describe('the option fetch', () => {
  test('loads the plugin in place of the global one', async () => {
    const seen = []
    const mine = (url, init) => {
      seen.push(String(url))
      return fetch(String(url).replace('https://example.com', base), init)
    }
    const manifest = { wasm: [{ url: 'https://example.com/plugin.wasm' }] }
    expect(await echoes(manifest, { fetch: mine })).toBe('hello')
    expect(await echoes('https://example.com/manifest.txt', { fetch: mine })).toBe('hello')
    expect(seen).toEqual(['https://example.com/plugin.wasm', 'https://example.com/manifest.txt'])
  })

  test('that fails is FETCH_FAILED, with the error as its cause', async () => {
    const cause = new Error('no network here')
    const failing = async () => { throw cause }
    await expect(createPlugin(`${base}/plugin.wasm`, { fetch: failing }))
      .rejects.toMatchObject({ code: 'FETCH_FAILED', message: expect.stringContaining('no network here'), cause })
  })

  test('may fail with anything, and must give a Response', async () => {
    await expect(createPlugin(base, { fetch: () => Promise.reject() })) // eslint-disable-line prefer-promise-reject-errors
      .rejects.toMatchObject({ code: 'FETCH_FAILED' })
    await expect(createPlugin(base, { fetch: async () => wasm }))
      .rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('must resolve to a Response') })
    const impatient = (url, init) => fetch(url, { ...init, signal: AbortSignal.timeout(50) })
    routes['/slow'] = () => {}
    await expect(createPlugin(`${base}/slow`, { fetch: impatient }))
      .rejects.toMatchObject({ code: 'FETCH_FAILED', cause: { name: 'TimeoutError' } })
  })

  test('gets a signal that is aborted when the opening ends early', async () => {
    routes['/slow'] = () => {}
    let signal
    const mine = (url, init) => {
      signal = init.signal
      return fetch(url, init)
    }
    await expect(createPlugin(`${base}/slow`, { fetch: mine, openTimeoutMs: 50 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect(signal.reason).toMatchObject({ code: 'TIMEOUT' })
  })

  test('is not used if the options are wrong', async () => {
    await expect(createPlugin(`${base}/plugin.wasm`, { unknown: true })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(paths).toEqual([])
  })
})

test('precompile fetches as createPlugin does', async () => {
  const compileCache = { directory: mkdtempSync(join(directory, 'cache-')) }
  await precompile(`${base}/manifest.json`, { compileCache })
  await expect(precompile(`${base}/missing`, { compileCache })).rejects.toMatchObject({ code: 'FETCH_FAILED' })
})

describe('every field of a manifest is read in both spellings, and as JSON', () => {
  const forms = {
    'an object': (manifest) => manifest,
    JSON: (manifest) => json({ ...manifest, wasm: [{ path }] })
  }
  for (const [name, form] of Object.entries(forms)) {
    for (const spelling of ['camelCase', 'snake_case']) {
      const key = (camel) => spelling === 'camelCase' ? camel : camel.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

      test(`${name} in ${spelling}`, async () => {
        const plugin = await open(form({ wasm: [{ path }], config: { who: 'manifest' }, [key('timeoutMs')]: 100 }))
        expect((await plugin.call('read_config', 'who')).text()).toBe('manifest')
        await expect(plugin.call('loop_for_ever')).rejects.toMatchObject({ code: 'TIMEOUT' })
        const small = await open(form({ wasm: [{ path }], memory: { [key('maxPages')]: 2 } }))
        await expect(small.call('echo', new Uint8Array(3 * 65536))).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
        await open(form({ wasm: [{ path }], memory: { [key('maxVarBytes')]: 0 } }))
      })
    }
  }

  test('options in either spelling win, limit by limit', async () => {
    const variables = await assemble(`(module
      (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
      (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
      (func (export "set") (call $var_set (call $input_offset) (call $input_offset))))`)
    const manifest = { wasm: [{ data: variables }], timeoutMs: 1, memory: { maxPages: 1, max_var_bytes: 10 } }
    const plugin = await open(manifest, { timeout_ms: 10_000, memory: { max_pages: 16 } })
    await plugin.call('set', '10 bytes ?')
    await expect(plugin.call('set', new Uint8Array(2 * 65536).fill(65)))
      .rejects.toThrow(/^var memory limit exceeded: 131082 bytes requested, 10 allowed$/)
  })
})
