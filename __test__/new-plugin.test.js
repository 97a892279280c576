'use strict'

// `extism-host new`, and docs/tutorials/write-your-first-plugin.md, whose steps are taken as they are printed. With
// SCREENSHOTS=<directory>, the test saves a picture of the dev page there.

const { execFileSync, spawn, spawnSync } = require('node:child_process')
const { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { launch } = require('./support/chromium.js')
const { examples } = require('./support/examples.js')
const { ROOT, canRun } = require('./support/processes.js')
const { freePort } = require('./support/redis.js')

const COMMAND = `${JSON.stringify(process.execPath)} ${JSON.stringify(join(ROOT, 'bin/extism-host.js'))}`
const TUTORIAL = 'docs/tutorials/write-your-first-plugin.md'

// Compilers that start with an empty cache take long on a busy machine.
jest.setTimeout(600_000)

let directory

beforeEach(() => { directory = mkdtempSync(join(tmpdir(), 'extism-host-new-')) })
afterEach(() => rmSync(directory, { recursive: true, maxRetries: 10 }))

/** A script as its readers run it; what it installs is what this repository has, as a test has no registry of its own. */
const asHere = (script) => script
  .replaceAll('npx @extism-host/cli', COMMAND)
  .replaceAll(/^npm install.*$/gm, `[ -e node_modules ] || ln -s ${JSON.stringify(join(ROOT, 'node_modules'))} node_modules`)

function shell (script, cwd = directory) {
  // The dependencies of the project in Rust take long to optimize, and the test does not need that.
  const env = { ...process.env, CARGO_PROFILE_RELEASE_OPT_LEVEL: '0' }
  const { status, stdout, stderr } = spawnSync('bash', ['-ec', asHere(script)], { cwd, env, encoding: 'utf8', timeout: 600_000, killSignal: 'SIGKILL' })
  if (status !== 0) throw new Error(`${script} exited with ${status}: ${stdout}${stderr}`)
  return stdout
}

const create = (...args) => spawnSync(process.execPath, [join(ROOT, 'bin/extism-host.js'), 'new', ...args], { cwd: directory, encoding: 'utf8' })

describe('extism-host new', () => {
  // rustup may have Rust without the standard library for WebAssembly.
  const rustLibraries = canRun('rustc', ['--version']) && join(execFileSync('rustc', ['--print', 'sysroot'], { cwd: tmpdir(), encoding: 'utf8' }).trim(), 'lib/rustlib')
  const hasRust = rustLibraries && existsSync(join(rustLibraries, 'wasm32-unknown-unknown'))
  if (!hasRust) console.log('Rust for wasm32-unknown-unknown is not installed: not building the project in Rust.')

  // The tutorial makes one in Go.
  test.each(['assemblyscript', ...(hasRust ? ['rust'] : [])])('makes a project in %s, whose test passes by the commands that it prints', (language) => {
    const { status, stdout, stderr } = create('my-plugin', '--lang', language)
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    const [, commands] = /^Created my-plugin\. .+\n\n([^]*)npm run dev\n$/.exec(stdout)
    expect(commands).toBe('cd my-plugin\nnpm install\nnpm test\n')
    expect(shell(commands)).toMatch(/pass 2$/m)
    const { name, scripts } = JSON.parse(readFileSync(join(directory, 'my-plugin/package.json')))
    expect({ name, scripts: Object.keys(scripts) }).toEqual({ name: 'my-plugin', scripts: ['build', 'dev', 'test'] })
  })

  test('writes into an empty directory only', () => {
    mkdirSync(join(directory, 'mine'))
    writeFileSync(join(directory, 'mine/main.go'), 'package mine')
    expect(create('mine', '--lang', 'go')).toMatchObject({ status: 1, stderr: 'extism-host: INVALID_ARGUMENT: mine is not empty: choose another name\n' })
    expect(create('My Plugin', '--lang', 'go')).toMatchObject({ status: 2, stderr: expect.stringContaining('"My Plugin" cannot be the name of an npm package') })
    expect(create('plugin', '--lang', 'cobol')).toMatchObject({ status: 2, stderr: expect.stringContaining('Allowed choices are go, rust, assemblyscript.') })
    expect(create('plugin')).toMatchObject({ status: 2 })
    expect(existsSync(join(directory, 'plugin'))).toBe(false)
  })
})

describe(TUTORIAL, () => {
  let browser
  let server

  beforeAll(async () => { browser = await launch() })
  afterAll(() => browser.close())
  afterEach(() => stop())

  /** Starts a command that stays, such as `npm run dev`, in a group of its own. */
  function start (command, cwd) {
    const child = spawn('bash', ['-c', command], { cwd, detached: true, stdio: ['ignore', 'pipe', 'pipe'] })
    const ended = new Promise((resolve) => child.on('close', resolve))
    server = { child, ended, printed: '' }
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => { server.printed += chunk })
  }

  async function stop () {
    if (server === undefined) return
    process.kill(-server.child.pid, 'SIGTERM')
    await server.ended
    server = undefined
  }

  async function openPage (url) {
    for (let tries = 0; !server.printed.includes('Loaded version 1'); tries++) {
      if (tries > 3_000) throw new Error(`it has not loaded the plugin: ${server.printed}`)
      await sleep(20)
    }
    const page = await browser.newPage({ viewport: { width: 1100, height: 680 }, colorScheme: 'light' })
    page.setDefaultTimeout(120_000)
    await page.goto(url)
    return page
  }

  async function runGreet (page) {
    await page.getByRole('textbox', { name: 'Input' }).fill('Jane')
    await page.getByRole('radio', { name: 'greet' }).check()
    await page.getByRole('button', { name: 'Run' }).click()
    await page.locator('#summary').filter({ hasText: 'greet: OK' }).waitFor()
    return page.locator('#output').innerText()
  }

  test('each step gives what it shows', async () => {
    const [newProject, firstTest, dev, devWithFunctions, curl, , serve] = examples(TUTORIAL, 'bash')
    const [created, greeting, served] = examples(TUTORIAL, 'text')
    const [functions, test, program] = examples(TUTORIAL, 'js')
    const [plugin] = examples(TUTORIAL, 'go')
    const [devPort, port] = [await freePort(), await freePort()]
    const project = join(directory, 'greeter')
    const save = (name, content) => writeFileSync(join(project, name), content.replaceAll('3000', port))
    const [url] = /http:\S+_dev/.exec(readFileSync(join(ROOT, TUTORIAL), 'utf8'))[0].replace('7070', devPort).split('>')

    expect(shell(newProject)).toBe(created)
    expect(shell(firstTest)).toMatch(/pass 2$/m)

    start(dev.replace('\n', ` -- --port ${devPort}\n`), project)
    const first = await openPage(url)
    expect(await runGreet(first)).toBe('Hello, Jane!')
    save('main.go', plugin)
    await first.getByRole('alert').filter({ hasText: 'MISSING_IMPORT' }).waitFor()
    await stop()

    save('functions.js', functions)
    start(devWithFunctions.replace('\n', ` --port ${devPort}\n`), project)
    const second = await openPage(url)
    expect(`${await runGreet(second)}\n`).toBe(greeting)
    expect(await second.getByRole('row').nth(1).innerText()).toContain('extism:host/user cityOf\t"Jane"\t"Berlin"')
    expect(await second.locator('#curl').innerText()).toBe(curl.trim().replace('7070', devPort))
    if (process.env.SCREENSHOTS !== undefined) await second.screenshot({ path: join(process.env.SCREENSHOTS, 'dev-page.png') })
    expect(`${shell(curl.replace('7070', devPort))}\n`).toBe(greeting)
    await stop()

    save('test.js', test)
    expect(shell('npm test', project)).toMatch(/pass 1$/m)

    save('server.js', program)
    const script = serve.replaceAll('3000', port)
    expect(`${shell(`${script.replace(' &\n', ' > log 2>&1 &\n')}kill $!\n`, project)}\n`).toBe(served)
  })
})
