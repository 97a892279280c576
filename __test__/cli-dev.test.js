'use strict'

// `extism-host dev` as a process, and its page in a browser.

const { execFileSync, spawn } = require('node:child_process')
const { createServer, request } = require('node:http')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const axe = require('axe-core')
const { buildOnChange } = require('../packages/cli/lib/dev/build.js')
const { launch, openPage } = require('./support/chromium.js')
const { assemble, guest } = require('./support/guest.js')
const { ROOT, startServer } = require('./support/processes.js')
const { freePort, isListening } = require('./support/redis.js')

/** A real compiler, of WebAssembly text, with real messages. */
const BUILD = `
const { readFileSync, writeFileSync } = require('node:fs')
const wabt = require(${JSON.stringify(require.resolve('wabt'))})
wabt().then(({ parseWat }) => {
  const module = parseWat('plugin.wat', readFileSync('plugin.wat', 'utf8'))
  writeFileSync('plugin.wasm', module.toBinary({ write_debug_names: true }).buffer)
}).catch(({ message }) => {
  console.error(message)
  process.exitCode = 1
})`

const FUNCTIONS = `module.exports = {
  'extism:host/user': {
    async city (context, name) {
      return 'Berlin, says the host to ' + context.read(name).text()
    },
    measure (context, long, int, float) {
      return long * 2n
    },
    refuse () { throw new Error('the host function refuses') }
  }
}`

const PLUGIN = `(module
  (import "extism:host/user" "city" (func $city (param i64) (result i64)))
  (import "extism:host/user" "refuse" (func $refuse))
  (import "extism:host/user" "measure" (func $measure (param i64 i32 f64) (result i64)))
  (import "env" "extism_input_offset" (func $input (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "log_info" (func $log (param i64)))
  (func $send (param $block i64) (result i32)
    (call $output (local.get $block) (call $length (local.get $block)))
    (i32.const 0))
  (func (export "echo") (result i32) (call $send (call $input)))
  (func (export "city") (result i32)
    (call $log (call $input))
    (call $send (call $city (call $input))))
  (func (export "refuse") (result i32) (call $refuse) (i32.const 0))
  (func (export "measure") (result i32)
    (drop (call $measure (i64.const -5) (i32.const -7) (f64.const 1.5)))
    (drop (call $measure (i64.const 4611686018427387904) (i32.const 0) (f64.const 0)))
    (i32.const 0))
  (func $divide (param i32) (result i32) (i32.div_u (i32.const 1) (local.get 0)))
  (func (export "divide") (result i32) (call $divide (i32.const 0)))
  (func (export "forever") (result i32) (loop (br 0)) (i32.const 0)))`

const PNG = Buffer.from('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==', 'base64')

// A browser, a server and a build for each of them take long on a busy machine.
jest.setTimeout(120_000)

let browser
let directory
let running = []

beforeAll(async () => { browser = await launch() })
afterAll(() => browser.close())

function makeProject () {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-dev-'))
  write('build.js', BUILD)
  write('functions.js', FUNCTIONS)
  write('plugin.wat', PLUGIN)
}

async function removeProject () {
  for (const { child, ended } of running) {
    child.kill('SIGKILL')
    await ended
  }
  running = []
  rmSync(directory, { recursive: true, maxRetries: 10 })
}

afterEach(() => Promise.all(browser.contexts().map((context) => context.close())))

const write = (name, content) => writeFileSync(join(directory, name), content)

/** Starts the command in the directory; resolves when it listens, with its address and what it has printed so far. */
function dev (args) {
  const child = spawn(process.execPath, [join(ROOT, 'bin/extism-host.js'), 'dev', ...args, '--port', '0'], { cwd: directory })
  const ended = new Promise((resolve) => child.on('close', (code, signal) => resolve({ code, signal })))
  const server = { child, ended, printed: '' }
  running.push(server)
  return new Promise((resolve, reject) => {
    const hear = (chunk) => {
      server.printed += chunk
      const [, url] = /Open (http:\S+)\/_dev/.exec(server.printed) ?? []
      if (url !== undefined) resolve(Object.assign(server, { url }))
    }
    child.stdout.on('data', hear)
    child.stderr.on('data', hear)
    ended.then(() => reject(new Error(`it ended before it listened: ${server.printed}`)))
  })
}

const devBuilding = () => dev(['.', '--build', `${JSON.stringify(process.execPath)} build.js`, '--functions', 'functions.js'])

async function printed (server, text) {
  for (let tries = 0; !server.printed.includes(text); tries++) {
    if (tries > 3_000) throw new Error(`it has not printed "${text}" but: ${server.printed}`)
    await sleep(20)
  }
}

/** Opens the page. `page.problems` are what its scripts complain about, and its requests to others. */
async function open (url, options) {
  const { page, problems } = await openPage(browser, url, { viewport: { width: 1100, height: 760 }, ...options })
  page.setDefaultTimeout(60_000)
  await page.goto(`${url}/_dev`)
  await page.getByRole('radio', { name: 'echo' }).waitFor()
  return Object.assign(page, { problems })
}

const summary = (page, text) => page.locator('#summary').filter({ hasText: text }).waitFor()
const textOf = (page, selector) => page.locator(selector).innerText()

async function run (page, name, input) {
  await page.getByRole('radio', { name, exact: true }).check()
  if (input !== undefined) await page.getByRole('textbox', { name: 'Input' }).fill(input)
  await page.getByRole('button', { name: 'Run' }).click()
  await summary(page, `${name}: `)
}

/** Sends a request with any headers, also those that fetch refuses to send. */
function send (url, { method = 'GET', headers, body } = {}) {
  return new Promise((resolve, reject) => {
    request(url, { method, headers, agent: false }, (response) => {
      let text = ''
      response.on('data', (chunk) => { text += chunk }).on('end', () => resolve({ status: response.statusCode, headers: response.headers, text }))
    }).on('error', reject).end(body)
  })
}

/** The report of a call, as the page gets it. */
const call = async ({ url }, name, body) => JSON.parse((await send(`${url}/_dev/call/${name}`, { method: 'POST', body })).text)

describe('the page', () => {
  let server

  beforeAll(async () => {
    makeProject()
    server = await devBuilding()
  })

  afterAll(removeProject)

  test('runs a function, and shows its output, logs and host functions', async () => {
    const page = await open(server.url)
    await run(page, 'city', '{"name": "Jane"}')
    await summary(page, /^city: OK · [\d.]+ ms · 41 bytes · [\d,]+ KiB of memory · version 1$/)
    expect(await textOf(page, '#output')).toBe('Berlin, says the host to {"name": "Jane"}')
    expect(await page.getByRole('list', { name: 'Logs' }).innerText()).toBe('info {"name": "Jane"}')
    expect(await page.getByRole('row').nth(1).innerText()).toMatch(/^extism:host\/user city\t"{\\"name\\": \\"Jane\\"}"\t"Berlin, says the host to {\\"name\\": \\"Jane\\"}"\t[\d.]+ ms$/)
    await page.getByRole('radio', { name: 'JSON' }).first().check()
    expect(await page.locator('#highlighted .key').allInnerTexts()).toEqual(['"name"'])
    await page.getByRole('textbox', { name: 'Input' }).fill('{"name": }')
    expect(await textOf(page, '#input-problem')).toMatch(/^Not valid JSON: /)
    expect(page.problems).toEqual([])
  })

  test('shows numbers that host functions get and return', async () => {
    const page = await open(server.url)
    await run(page, 'measure')
    await summary(page, 'measure: OK')
    expect(await page.getByRole('row').allInnerTexts()).toEqual([
      expect.any(String),
      expect.stringMatching(/measure\t-5, -7, 1.5\t-10\t/),
      expect.stringMatching(/measure\t4611686018427387904, 0, 0\t/)
    ])
  })

  test.each(['light', 'dark'])('has no problem that axe finds, such as low contrast or a missing name, in %s colours', async (colorScheme) => {
    const page = await open(server.url, { colorScheme })
    await run(page, 'divide', '{"a": 1}')
    await page.getByRole('radio', { name: 'JSON' }).first().check()
    await run(page, 'city')
    await page.evaluate(axe.source)
    const { passes, violations } = await page.evaluate(() => globalThis.axe.run())
    expect(passes.length).toBeGreaterThan(20)
    expect(violations.map(({ id, nodes }) => ({ id, nodes: nodes.map(({ html, failureSummary }) => html + failureSummary) }))).toEqual([])
  })

  test('shows an error with its WebAssembly backtrace, and the stack of a host function\'s error', async () => {
    const page = await open(server.url)
    await run(page, 'divide')
    expect(await textOf(page, '#error')).toMatch(/^TRAP .*divide by zero/s)
    expect(await page.locator('#frames li').allInnerTexts()).toEqual([expect.stringContaining('divide'), 'wasm-function[13]'])
    await printed(server, 'divide: TRAP in')
    await run(page, 'refuse')
    expect(await textOf(page, '#error')).toMatch(/the host function refuses.*functions\.js:9/s)
    expect(await textOf(page, '#host-calls')).toContain('extism:host/user refuse')
    expect(page.problems).toEqual([])
  })

  test('repeats calls of its history', async () => {
    const page = await open(server.url)
    await run(page, 'echo', 'one')
    await run(page, 'city', 'two')
    await page.getByRole('button', { name: 'Repeat echo one' }).click()
    await summary(page, 'echo: OK')
    expect(await page.getByRole('textbox', { name: 'Input' }).inputValue()).toBe('one')
    expect(await page.locator('#calls .show').allInnerTexts()).toEqual(['echo one', 'city two', 'echo one'])
    await page.getByRole('button', { name: 'city two', exact: true }).click()
    await summary(page, 'city: OK')
  })

  test('shows an output as text, JSON, hex, an image, and as HTML that runs no script', async () => {
    const page = await open(server.url)
    await run(page, 'echo', '{"a": [1, true]}')
    expect(await textOf(page, '#output')).toBe('{\n  "a": [\n    1,\n    true\n  ]\n}')
    const view = (name) => page.getByRole('group', { name: 'Show the output as' }).getByRole('radio', { name, exact: true })
    await view('Hex').check()
    expect(await textOf(page, '#output')).toBe('00000000  7b 22 61 22 3a 20 5b 31 2c 20 74 72 75 65 5d 7d  {"a": [1, true]}')

    await run(page, 'echo', '<!doctype html><style>p { color: rgb(1, 2, 3) }</style><p>styled</p><script>document.querySelector("p").textContent = "a script"</script>')
    const paragraph = page.frameLocator('iframe').getByText('styled')
    expect(await paragraph.evaluate((element) => globalThis.getComputedStyle(element).color)).toBe('rgb(1, 2, 3)')
    await view('Text').check()
    expect(await textOf(page, '#output')).toMatch(/^<!doctype html>/)

    await run(page, 'echo', `${'<!---->'.repeat(72)}no image`)
    expect(await textOf(page, '#output')).toContain('no image')

    await run(page, 'echo', `${'['.repeat(20_000)}${']'.repeat(20_000)}`)
    expect(await textOf(page, '#output')).toContain('[[[')

    write('pixel.png', PNG)
    await page.getByRole('radio', { name: 'File' }).check()
    await page.getByLabel('Input file').setInputFiles(join(directory, 'pixel.png'))
    await page.getByRole('button', { name: 'Run' }).click()
    const image = page.getByRole('img', { name: 'The output of the plugin' })
    await image.waitFor()
    expect(await image.evaluate(({ naturalWidth }) => naturalWidth)).toBe(1)
    expect(await textOf(page, '#curl')).toMatch(/--data-binary '@pixel\.png'$/)
  })

  test('stops a call that never ends', async () => {
    const page = await open(server.url)
    await page.getByRole('radio', { name: 'forever' }).check()
    await page.getByRole('button', { name: 'Run' }).click()
    await page.getByRole('button', { name: 'Stop' }).click()
    await summary(page, 'forever: Error')
    await run(page, 'echo', 'still here')
    expect(await textOf(page, '#output')).toBe('still here')
  })

  test('can be used by keyboard alone, in the dark', async () => {
    const page = await open(server.url, { colorScheme: 'dark' })
    const [red] = (await page.evaluate(() => globalThis.getComputedStyle(globalThis.document.body).backgroundColor)).match(/\d+/g)
    expect(Number(red)).toBeLessThan(60)
    await page.getByRole('radio', { name: 'echo' }).focus()
    await page.keyboard.press('ArrowDown')
    await page.keyboard.press('Tab')
    await page.keyboard.press('Tab')
    await page.keyboard.type('Jane')
    await page.keyboard.press('Control+Enter')
    await summary(page, 'city: OK')
    // Repeat, in the history, comes after the output and the logs.
    for (let presses = 0; await page.evaluate(() => globalThis.document.activeElement.textContent) !== 'Repeat'; presses++) {
      expect(presses).toBeLessThan(20)
      await page.keyboard.press('Tab')
    }
    await page.keyboard.press('Enter')
    await page.locator('#calls li').nth(1).waitFor()
  })

  test('copies lines that work', async () => {
    const page = await open(server.url, { permissions: ['clipboard-read', 'clipboard-write'] })
    await run(page, 'echo', 'it\'s "€"\n')
    const copied = async (name) => {
      await page.getByRole('button', { name }).click()
      return page.evaluate(() => globalThis.navigator.clipboard.readText())
    }
    const curl = await copied('Copy the curl command')
    expect(execFileSync('bash', ['-c', `${curl} -sS`], { encoding: 'utf8' })).toBe('it\'s "€"\n')
    expect(await copied('Copy the line of JavaScript')).toBe('const output = await plugin.call("echo", "it\'s \\"€\\"\\n")')
  })
})

describe('in a project of its own', () => {
  beforeEach(makeProject)
  afterEach(removeProject)

  test('the page shows the compiler\'s errors until they are gone, and reloads the plugin when its source changes', async () => {
    const server = await devBuilding()
    const page = await open(server.url)
    await run(page, 'city', 'Jane')
    write('plugin.wat', PLUGIN.replace('(call $city', '(call $town'))
    await page.getByRole('alert').filter({ hasText: 'undefined function variable "$town"' }).waitFor()
    expect(await textOf(page, '#state')).toBe('Failed: version 1 is loaded')
    await printed(server, 'undefined function variable "$town"')
    await page.getByRole('checkbox', { name: 'Run again after a reload' }).check()
    write('plugin.wat', PLUGIN.replace('(call $send (call $city (call $input)))', '(call $send (call $input))').replace('"forever"', '"eternal"'))
    await summary(page, /^city: OK .*version 2$/)
    expect(await textOf(page, '#output')).toBe('Jane')
    expect(await page.getByRole('alert').isVisible()).toBe(false)
    expect(await page.getByRole('radio', { name: 'eternal' }).isVisible()).toBe(true)
    write('functions.js', FUNCTIONS.replace('Berlin', 'Rome'))
    await summary(page, /version 3$/)
    expect(page.problems).toEqual([])
  })

  test('answers no other name, so that DNS rebinding is in vain, and no page of another origin', async () => {
    const { url } = await devBuilding()
    const { host } = new URL(url)
    for (const headers of [{ host: 'evil.example' }, { host: 'localhost.evil.example' }, { host, origin: 'http://evil.example' }, { host, origin: 'null' }, { host, origin: 'http://127.0.0.1:1' }]) {
      for (const [path, method] of [['/_dev', 'GET'], ['/_dev/events', 'GET'], ['/_dev/call/echo', 'POST'], ['/echo', 'POST']]) {
        const { status, text } = await send(url + path, { method, headers, body: method === 'POST' ? 'x' : undefined })
        expect({ headers, path, status, text }).toEqual({ headers, path, status: 403, text: expect.stringContaining('Forbidden') })
      }
    }
    const own = await send(`${url}/_dev`, { headers: { host } })
    expect(own.status).toBe(200)
    expect(own.headers['content-security-policy']).toMatch(/^default-src 'none'; script-src 'self'; style-src 'self';(?!.*unsafe)/)
    expect(own.headers['access-control-allow-origin']).toBeUndefined()
  })

  test('listens on loopback only, whatever it is asked for', async () => {
    const { url } = await devBuilding()
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/)
    await expect(dev(['.', '--host', '0.0.0.0'])).rejects.toThrow("unknown option '--host'")
  })

  test('serves each function, with the error that serve would hide', async () => {
    const server = await devBuilding()
    await printed(server, 'Loaded version 1')
    expect(await send(`${server.url}/echo`, { method: 'POST', body: 'Jane' })).toMatchObject({ status: 200, text: 'Jane' })
    const { status, text } = await send(`${server.url}/divide`, { method: 'POST' })
    expect({ status, code: JSON.parse(text).code }).toEqual({ status: 500, code: 'TRAP' })
  })

  test('reports what a call did with its store, and how much memory the plugin has', async () => {
    const server = await dev([join(ROOT, 'plugins/visits-rust/visits.wasm'), '--store', 'memory:', '--store-write'])
    const { outputId, memoryBytes, hostCalls } = await call(server, 'visit', 'Jane')
    expect(hostCalls.map(({ name, args }) => [name, ...args])).toEqual(['hostStoreIncrement', 'hostStoreGet', 'hostStoreSet'].map((name) => [name, 'store: memory']))
    expect(memoryBytes).toBeGreaterThan(65_536)
    expect(await send(`${server.url}/_dev/output/${outputId}`)).toMatchObject({ status: 200, text: 'visit 1 of Jane, after nobody' })
  })

  test('reports the HTTP requests of a guest', async () => {
    const web = createServer((request, response) => response.end('hello'))
    await new Promise((resolve) => web.listen(0, '127.0.0.1', resolve))
    try {
      write('http.wasm', await guest('http'))
      const server = await dev(['http.wasm', '--allow-host', '127.0.0.1'])
      const url = `http://127.0.0.1:${web.address().port}/here`
      const { hostCalls } = await call(server, 'body', JSON.stringify({ url, method: 'GET' }))
      expect(hostCalls).toEqual([{ name: 'http_request', args: [`GET ${url}`], result: '200', durationMs: expect.any(Number), startTime: expect.any(Number) }])
    } finally {
      web.close()
    }
  })

  test('reloads a plugin that somebody else builds, and keeps the old version if the new one is broken', async () => {
    const wasm = async (word) => write('plugin.wasm', await assemble(PLUGIN.replace('"eternal"', `"${word}"`).replace('"forever"', `"${word}"`)))
    await wasm('first')
    const server = await dev(['plugin.wasm', '--functions', 'functions.js'])
    await printed(server, 'Loaded version 1: echo, city, refuse, measure, divide, first')
    write('plugin.wasm', 'not a module')
    await printed(server, 'extism-host: INVALID_WASM')
    expect(await send(`${server.url}/echo`, { method: 'POST', body: 'Jane' })).toMatchObject({ status: 200, text: 'Jane' })
    await wasm('second')
    await printed(server, 'Loaded version 2: echo, city, refuse, measure, divide, second')
  })

  test('loads a manifest once its mistake is corrected', async () => {
    write('plugin.wasm', await assemble(PLUGIN))
    write('manifest.json', '{ "wasm": [{ "path": "plugin.wasm" }')
    const server = await dev(['manifest.json', '--functions', 'functions.js'])
    await printed(server, 'must be a manifest')
    write('manifest.json', JSON.stringify({ wasm: [{ path: join(directory, 'plugin.wasm') }] }))
    await printed(server, 'Loaded version 1')
  })

  test('takes as many open pages as there are', async () => {
    write('plugin.wasm', await assemble(PLUGIN))
    const server = await dev(['plugin.wasm', '--functions', 'functions.js'])
    const pages = await Promise.all(Array.from({ length: 12 }, () => fetch(`${server.url}/_dev/events`)))
    await Promise.all(pages.map(({ body }) => body.cancel()))
    await send(`${server.url}/forget`, { method: 'POST' })
    expect(server.printed).not.toContain('MaxListenersExceededWarning')
  })

  test('starts no build once it is told to end', async () => {
    const stop = new AbortController()
    const starts = []
    const building = buildOnChange('exit 0', directory, { signal: stop.signal, onStart: () => starts.push('a build'), onEnd () {} })
    stop.abort()
    await building
    expect(starts).toEqual([])
  })

  test('ends on SIGTERM, with the build that runs', async () => {
    const port = await freePort()
    write('build.js', `require("node:net").createServer().listen(${port}, "127.0.0.1", () => console.log("it builds"))`)
    const server = await devBuilding()
    await printed(server, 'it builds')
    server.child.kill('SIGTERM')
    expect(await server.ended).toEqual({ code: 0, signal: null })
    expect(await isListening(port)).toBe(false)
  })

  test('says so if there is nothing to load', async () => {
    const server = await dev(['.'])
    await printed(server, 'there is no .wasm file in .; pass the command that builds one as --build')
  })
})

test('serve has no such page', async () => {
  const { child, ended, url } = await startServer({})
  try {
    expect((await fetch(`${url}/_dev`)).status).toBe(404)
  } finally {
    child.kill()
    await ended
  }
})
