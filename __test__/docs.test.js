'use strict'

// The examples of the documentation are run as they are printed.

const { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
const { createServer } = require('node:http')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { examples } = require('./support/examples.js')
const { guest } = require('./support/guest.js')
const { hasMosquitto, startMosquitto } = require('./support/mosquitto.js')
const { ROOT, runNode, startServer } = require('./support/processes.js')
const { hasNats, startNats } = require('./support/nats.js')
const { hasPostgres, startPostgres } = require('./support/postgres.js')
const { freePort, hasRedis, startRedis } = require('./support/redis.js')

/** The commands of a document that contain a text. */
function commands (file, text) {
  return examples(file, 'bash').find((script) => script.includes(text))
}

describe('README.md', () => {
  test('its example of the API prints the answer that it shows', async () => {
    const { code, output } = await runNode(['-e', examples('README.md', 'js')[0]])
    expect({ code, output }).toEqual({ code: 0, output: examples('README.md', 'text')[0] })
  })

  test('its curl command gives the answer that it shows', async () => {
    const { child, ended, url } = await startServer({})
    try {
      const curl = commands('README.md', 'curl').replace('http://localhost:7070', url)
      expect(await shell(curl)).toBe(examples('README.md', 'text')[0].trimEnd())
    } finally {
      child.kill()
      await ended
    }
  })

  test('it has the two commands that .ci/run runs, and at most 120 lines', () => {
    for (const command of ['npm ci && node server.js', 'npm ci && npm test']) expect(commands('README.md', command)).toBe(`${command}\n`)
    expect(readFileSync(join(ROOT, 'README.md'), 'utf8').trimEnd().split('\n').length).toBeLessThanOrEqual(120)
  })
})

describe('index.d.ts', () => {
  const names = Object.keys(require('..')).filter((name) => name !== 'default')
  const types = readFileSync(join(ROOT, 'index.d.ts'), 'utf8')
  const programs = [...types.matchAll(/@example\n *\* ```js\n([^]*?) *\* ```\n/g)].map(([, text]) => text.replace(/^ *\* ?/gm, ''))

  test('has examples', () => expect(programs.length).toBeGreaterThan(7))

  test.each(programs.map((program) => [program.split('\n')[0], program]))('its example "%s" prints what its comments say', async (_, program) => {
    const printed = [...program.matchAll(/console\.log\(.*\) \/\/ (.*)$/gm)].map(([, text]) => `${text}\n`).join('')
    await expectPrints(`const { ${names.join(', ')} } = require('extism-host'); (async () => {\n${program}\n})()`, printed)
  })
})

describe('error codes', () => {
  test('the page and the types have those of docs/reference/error-codes.json', async () => {
    const { code, errors } = await runNode(['scripts/error-codes.js', '--check'])
    expect({ code, errors }).toEqual({ code: 0, errors: '' })
  })

  test('they are those of ErrorCode, whose names come from Rust', () => {
    const { ErrorCode } = require('..')
    const { 'Not in ErrorCode': others, ...groups } = require('../docs/reference/error-codes.json')
    expect(Object.values(groups).flatMap(Object.keys).sort()).toEqual(Object.keys(ErrorCode).sort())
    expect(Object.keys(others).filter((code) => code in ErrorCode)).toEqual([])
  })
})

test('docs/reference/server.md names each variable of server.js', () => {
  const page = readFileSync(join(ROOT, 'docs/reference/server.md'), 'utf8')
  const server = readFileSync(join(ROOT, 'server.js'), 'utf8')
  const variables = /async function start \(\{ ([^}]+) \}/.exec(server)[1].split(', ')
  expect(variables.length).toBeGreaterThan(4)
  for (const name of variables) expect(page).toContain(`\`${name}\``)
})

test('every link of the documents leads to a file and, if it has one, a heading', async () => {
  const { code, errors } = await runNode(['scripts/links.js'])
  expect({ code, errors }).toEqual({ code: 0, errors: '' })
})

test('docs/explanation/performance.md and its plots are what bench/results give', async () => {
  const { code, errors } = await runNode(['bench/plot.js', 'bench/results', '--check'])
  expect({ code, errors }).toEqual({ code: 0, errors: '' })
})

test('docs/how-to/migrate.md: its example prints what it says', async () => {
  const [example] = examples('docs/how-to/migrate.md', 'js')
  const { code, output, errors } = await runNode(['-e', example])
  expect({ code, errors }).toEqual({ code: 0, errors: '' })
  expect(output).toBe(examples('docs/how-to/migrate.md', 'text')[0])
})

test('docs/reference/http.md: its example prints what it promises', async () => {
  const [example] = examples('docs/reference/http.md', 'js')
  const [promised] = examples('docs/reference/http.md', 'text')
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  const server = createServer((_, response) => response.end('hello'))
  try {
    const plugin = join(directory, 'plugin.wasm')
    writeFileSync(plugin, await guest('http'))
    await new Promise((resolve) => server.listen(0, 'localhost', resolve))
    const { output, errors } = await runNode(['-e', example
      .replace('\'plugin.wasm\'', JSON.stringify(plugin))
      .replace('localhost:8080', `localhost:${server.address().port}`)])
    expect({ output, errors }).toEqual({ output: promised, errors: '' })
  } finally {
    server.close()
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
})

test('docs/reference/tracing.md: its example prints how long the call and its operations took', async () => {
  const { code, output } = await runNode(['-e', examples('docs/reference/tracing.md', 'js')[0]])
  expect(code).toBe(0)
  expect(output).toMatch(/^ {2}hostMemoryGet: [\d.]+ ms\n {2}hostMemoryGet: [\d.]+ ms\nsay-hello say_hello: waited [\d.e-]+ ms, ran [\d.]+ ms\n$/)
})

test('docs/reference/wasi.md: its example prints what it promises', async () => {
  const [example] = examples('docs/reference/wasi.md', 'js')
  const [promised] = examples('docs/reference/wasi.md', 'text')
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  try {
    const plugin = join(directory, 'plugin.wasm')
    writeFileSync(plugin, await guest('wasi'))
    writeFileSync(join(directory, 'hello.txt'), 'hello world!')
    const { output, errors } = await runNode(['-e', example
      .replace('\'plugin.wasm\'', JSON.stringify(plugin))
      .replace('/srv/data', directory)])
    expect({ output, errors }).toEqual({ output: promised, errors: '' })
  } finally {
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
})

test.each([
  ['go', 'plugins/visits-go/main.go'],
  ['rust', 'plugins/visits-rust/src/lib.rs'],
  ['ts', 'plugins/visits-assemblyscript/visits.ts']
])('docs/reference/store-functions.md: the plugin in %s is %s', (language, file) => {
  expect(examples('docs/reference/store-functions.md', language)).toEqual([readFileSync(join(ROOT, file), 'utf8')])
})

/** A script as its readers run it, in a directory that has the plugins. */
function asHere (script, directory) {
  const command = `${JSON.stringify(process.execPath)} ${JSON.stringify(join(ROOT, 'bin/extism-host.js'))}`
  return `cd ${JSON.stringify(directory)}\n${script.replaceAll('npx extism-host', command)}`
}

test('docs/reference/command-line.md: its commands print what it shows', async () => {
  const scripts = examples('docs/reference/command-line.md', 'bash')
  const outputs = examples('docs/reference/command-line.md', 'text')
  expect(scripts.length).toBe(outputs.length)
  for (const [place, script] of scripts.entries()) {
    expect(await shell(`${asHere(script, ROOT)}true`)).toBe(outputs[place])
  }
})

test('docs/tutorials/getting-started.md: its server behaves as described', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  try {
    symlinkSync(join(ROOT, 'plugins'), join(directory, 'plugins'), 'dir')
    const port = await freePort()
    const [config] = examples('docs/tutorials/getting-started.md', 'yaml')
    writeFileSync(join(directory, 'extism-host.yaml'), config.replace('7070', port))
    const [start, use, reload] = examples('docs/tutorials/getting-started.md', 'bash')
    const wait = `curl -sS --retry 60 --retry-connrefused --retry-delay 1 -o /dev/null http://localhost:${port}/health/live\n`
    const script = [start.replace(' &', ' > /dev/null &'), wait, use, reload, 'kill $!\nwait $!\n'].join('').replaceAll('localhost:7070', `localhost:${port}`)
    expect(await shell(asHere(script, directory))).toBe(examples('docs/tutorials/getting-started.md', 'text').join(''))
  } finally {
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
})

test('docs/tutorials/first-plugin.md: each step gives what it shows', async () => {
  const file = 'docs/tutorials/first-plugin.md'
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  try {
    symlinkSync(join(ROOT, 'node_modules'), join(directory, 'node_modules'), 'dir')
    const [first, second] = examples(file, 'ts')
    const [call, callBack] = examples(file, 'js')
    const outputs = examples(file, 'text')
    const run = (name, program) => {
      writeFileSync(join(directory, name), program)
      return shell(`cd ${JSON.stringify(directory)} && ${JSON.stringify(process.execPath)} ${name}`)
    }

    writeFileSync(join(directory, 'greeter.ts'), first)
    const [build] = examples(file, 'bash')
    expect(await shell(asHere(build, directory))).toBe(outputs[0])
    expect(await run('main.js', call)).toBe(outputs[1])

    writeFileSync(join(directory, 'greeter.ts'), second)
    await shell(asHere(build.split('\n')[0], directory))
    expect(await run('main.js', callBack)).toBe(outputs[2])
  } finally {
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
})

describe('docs/tutorials/from-the-article.md', () => {
  test('its program serves the article\'s request', async () => {
    const [program] = examples('docs/tutorials/from-the-article.md', 'js')
    const { createServer } = require('node:net')
    const port = await new Promise((resolve) => {
      const probe = createServer().listen(0, () => {
        const { port } = probe.address()
        probe.close(() => resolve(port))
      })
    })
    const { spawn } = require('node:child_process')
    const child = spawn(process.execPath, ['-e', program], { cwd: ROOT, env: { ...process.env, PORT: port } })
    try {
      await new Promise((resolve, reject) => {
        child.stdout.on('data', (chunk) => String(chunk).includes('started') && resolve())
        child.on('close', (code) => reject(new Error(`the program ended with ${code}`)))
      })
      const response = await fetch(`http://localhost:${port}`, {
        method: 'POST',
        headers: { 'content-type': 'text/plain; charset=utf-8' },
        body: 'Jane Doe'
      })
      expect(await response.text()).toBe(examples('README.md', 'text')[0].trimEnd())
    } finally {
      child.kill('SIGKILL')
    }
  })
})

function shell (command) {
  const { execFile } = require('node:child_process')
  return new Promise((resolve, reject) => {
    execFile('bash', ['-c', command], (error, output) => error ? reject(error) : resolve(output))
  })
}

async function expectPrints (program, output) {
  const { code, output: printed, errors } = await runNode(['-e', program])
  expect({ code, output: printed, errors }).toEqual({ code: 0, output, errors: '' })
}

test.each([
  'docs/how-to/host-functions.md', 'docs/how-to/stores.md', 'docs/how-to/fastify.md', 'docs/reference/store-functions.md', 'docs/reference/store-redb.md'
])('each program of %s prints what the page shows', async (file) => {
  const programs = examples(file, 'js')
  const outputs = examples(file, 'text')
  expect(programs.length).toBeGreaterThan(0)
  expect(outputs.length).toBe(programs.length)
  for (const [place, program] of programs.entries()) {
    await expectPrints(program, outputs[place])
  }
})

test('docs/how-to/typed-plugins.md: its command and its programs print what it shows', async () => {
  const file = 'docs/how-to/typed-plugins.md'
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  try {
    symlinkSync(join(ROOT, 'node_modules'), join(directory, 'node_modules'), 'dir')
    symlinkSync(join(ROOT, 'plugins/say-hello/say-hello.wasm'), join(directory, 'say-hello.wasm'))
    writeFileSync(join(directory, 'greeter.yaml'), examples(file, 'yaml')[0])
    const [types, ...outputs] = examples(file, 'text')
    expect(await shell(asHere(examples(file, 'bash')[0], directory))).toBe(types)
    for (const [place, program] of examples(file, 'js').entries()) {
      writeFileSync(join(directory, 'main.js'), program)
      expect(await shell(`cd ${JSON.stringify(directory)} && ${JSON.stringify(process.execPath)} main.js`)).toBe(outputs[place])
    }
  } finally {
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
})

test('docs/how-to/operate.md: its upload prints what it shows', async () => {
  await expectPrints(examples('docs/how-to/operate.md', 'js').at(-1), examples('docs/how-to/operate.md', 'text')[0])
})

if (hasRedis()) {
  test('docs/how-to/scaling.md: its commands print what it shows', async () => {
    const server = await startRedis()
    try {
      const [commands] = examples('docs/how-to/scaling.md', 'bash')
      const ports = [await freePort(), await freePort()]
      const here = [['redis://localhost:6379', server.url], ['7071', ports[0]], ['7072', ports[1]]]
      const script = here.reduce((script, [before, after]) => script.replaceAll(before, after), commands)
      const expected = examples('docs/how-to/scaling.md', 'text')[0]
      expect(`${await shell(`cd ${JSON.stringify(ROOT)}\n${script}`)}`).toBe(expected)
    } finally {
      await server.stop()
    }
  })

  test('docs/reference/store-redis.md: its program prints what it shows', async () => {
    const server = await startRedis()
    try {
      const [program] = examples('docs/reference/store-redis.md', 'js')
      await expectPrints(program.replaceAll('redis://localhost:6379', server.url), examples('docs/reference/store-redis.md', 'text')[0])
    } finally {
      await server.stop()
    }
  })
}

/** The compiler of AssemblyScript takes half a minute on a busy machine. */
const COMPILER_MS = 180_000

/** Builds the plugin of a page, and runs its programs beside servers, whose addresses take the place of those on the page. */
async function expectRuns (file, start, alsoExpect = () => {}) {
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  const servers = []
  try {
    for (const [address, startServer] of Object.entries(start)) servers.push([address, await startServer(directory)])
    symlinkSync(join(ROOT, 'node_modules'), join(directory, 'node_modules'), 'dir')
    const here = (program) => servers.reduce((program, [address, { url }]) => program.replaceAll(address, url), program)
    const run = (script) => shell(`cd ${JSON.stringify(directory)}\n${script}`)
    const [[plugin], [build], programs, outputs] = ['ts', 'bash', 'js', 'text'].map((language) => examples(file, language))
    writeFileSync(join(directory, /\w+\.ts/.exec(build)[0]), plugin)
    await run(build)
    expect(outputs.length).toBe(programs.length)
    for (const [place, program] of programs.entries()) {
      writeFileSync(join(directory, 'main.js'), here(program))
      expect(await run(`${JSON.stringify(process.execPath)} main.js`)).toBe(outputs[place])
    }
    await alsoExpect(directory, here)
  } finally {
    await Promise.all(servers.map(([, server]) => server.stop()))
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
}

/** Serves the configuration of a page, for as long as `expectOf` asks it. */
async function expectServes (file, directory, here, expectOf) {
  writeFileSync(join(directory, 'config.yaml'), `server: { port: 0, drainMs: 0 }\n${here(examples(file, 'yaml')[0])}`)
  const { child, ended, url } = await startServer({}, ['bin/extism-host.js', 'serve', '--config', join(directory, 'config.yaml')])
  try {
    await expectOf(url)
  } finally {
    child.kill()
    await ended
  }
}

const NATS = { 'nats://localhost:4222': () => startNats() }
const JETSTREAM = { 'nats://localhost:4222': (directory) => startNats(['-js', '-sd', directory]) }
const POSTGRES = { 'postgresql://postgres@localhost:5432/postgres': () => startPostgres() }
const MQTT = { 'mqtt://localhost:1883': () => startMosquitto() }
const REDIS = { 'redis://localhost:6379': () => startRedis() }

if (hasNats() && hasPostgres()) {
  const file = 'docs/how-to/connect.md'
  test(`${file}: its plugin and its programs print what it shows, and its configuration serves`, () =>
    expectRuns(file, { ...NATS, ...POSTGRES }, (directory, here) => expectServes(file, directory, here, async (url) => {
      const answer = await (await fetch(`${url}/order`, { method: 'POST', body: '1' })).text()
      expect(`${answer}\n`).toBe(examples(file, 'text')[0])
    })), COMPILER_MS)
}

for (const [page, areHere, servers] of [
  ['connect-nats', hasNats(), NATS],
  ['connect-postgresql', hasPostgres(), POSTGRES],
  ['connect-mqtt', hasMosquitto(), MQTT],
  ['connect-redis', hasRedis(), REDIS],
  ['connect-slingshot', hasNats() && hasRedis(), { ...NATS, ...REDIS }]
]) {
  if (!areHere) continue
  test(`docs/how-to/${page}.md: its plugin and its program print what it shows`, () => expectRuns(`docs/how-to/${page}.md`, servers), COMPILER_MS)
}

if (hasNats() && hasMosquitto()) {
  const file = 'docs/how-to/triggers.md'
  test(`${file}: its programs print what it shows, and its configuration serves`, () =>
    expectRuns(file, { ...JETSTREAM, ...MQTT }, (directory, here) => expectServes(file, directory, here, async (url) => {
      expect((await fetch(`${url}/health/ready`)).status).toBe(200)
    })), COMPILER_MS)
}
