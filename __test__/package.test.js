'use strict'

// What is published, installed in empty projects.

const { execFile, execFileSync } = require('node:child_process')
const { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { dirname, join } = require('node:path')
const { version } = require('../package.json')
const { ROOT } = require('./support/processes.js')

const CORE = 'extism-host'
const COMMAND = '@extism-host/cli'

let directory
let packages
let binding

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-package-'))
  const output = execFileSync(process.execPath, ['scripts/pack.js', directory], { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] })
  packages = new Map(JSON.parse(output).map(({ name, file }) => [name, file]))
  binding = [...packages.keys()].find((name) => name.startsWith('@extism-host/binding-'))
})

afterAll(() => rmSync(directory, { recursive: true, maxRetries: 10 }))

/** A project with these packages. What others they need is that of this repository: a test has no registry. */
function install (name, installed, more = []) {
  const project = join(directory, name)
  const modules = join(project, 'node_modules')
  const needed = new Set(more)
  for (const name of installed) {
    mkdirSync(join(modules, name), { recursive: true })
    execFileSync('tar', ['-xzf', packages.get(name), '-C', join(modules, name), '--strip-components=1'])
    for (const dependency of Object.keys(require(join(modules, name, 'package.json')).dependencies ?? {})) needed.add(dependency)
  }
  for (const name of needed) {
    if (packages.has(name)) continue
    mkdirSync(dirname(join(modules, name)), { recursive: true })
    symlinkSync(join(ROOT, 'node_modules', name), join(modules, name), 'dir')
  }
  return {
    project,
    run: (file, ...args) => new Promise((resolve) => {
      execFile(process.execPath, [file, ...args], { cwd: project }, (error, output, errors) => resolve({ code: error?.code ?? 0, output, errors }))
    }),
    write: (file, text) => writeFileSync(join(project, file), text)
  }
}

const GUEST = 'Buffer.from("AGFzbQEAAAABBQFgAAF/AwIBAAcHAQNydW4AAAoGAQQAQQAL", "base64")'

describe('all packages', () => {
  let app
  beforeAll(() => { app = install('all', [...packages.keys()], ['fastify', '@types/node']) })

  test('work by require', async () => {
    app.write('main.cjs', `
      const { createPlugin, openStore } = require('extism-host')
      const Fastify = require('fastify')
      async function main () {
        const app = Fastify()
        app.register(require('extism-host/fastify'), { plugins: { guest: ${GUEST} }, routes: [{ url: '/', plugin: 'guest', function: 'run' }] })
        console.log((await app.inject({ method: 'POST', url: '/' })).statusCode, typeof createPlugin, (await openStore('memory:')).constructor.name)
        await app.close()
      }
      main()`)
    expect(await app.run('main.cjs')).toEqual({ code: 0, output: '200 function Store\n', errors: '' })
  })

  test('work by import, and under the names of their own', async () => {
    app.write('main.mjs', `
      import createPlugin, { MemoryStore } from 'extism-host'
      import extismHost from 'extism-host/fastify'
      import ownName from '@extism-host/fastify'
      import { connect } from 'extism-host/connect'
      const plugin = await createPlugin(${GUEST})
      console.log(await plugin.call('run'), extismHost === ownName, new MemoryStore().size, Object.keys(connect({})))
      await plugin.close()`)
    expect(await app.run('main.mjs')).toEqual({ code: 0, output: "null true 0 [ 'extism:host/user' ]\n", errors: '' })
  })

  test.each([CORE, COMMAND])('have the command, in %s', async (name) => {
    const { code, output } = await app.run(`node_modules/${name}/bin/extism-host.js`, '--version')
    expect({ code, output }).toEqual({ code: 0, output: `${version}\n` })
  })

  test('say which packages the API page and the types need', async () => {
    app.write('docs.cjs', `
      const app = require('fastify')()
      app.register(require('extism-host/fastify'), { plugins: { guest: ${GUEST} }, docs: true })
      app.ready().catch(({ code, message }) => console.log(code, message))`)
    expect((await app.run('docs.cjs')).output).toBe('NOT_INSTALLED docs need the package @fastify/swagger: npm install @fastify/swagger @fastify/swagger-ui\n')
    app.write('schema.json', '{ "exports": { "run": {} } }')
    expect((await app.run('node_modules/extism-host/bin/extism-host.js', 'types', 'schema.json')).errors).toMatch(
      /^extism-host: NOT_INSTALLED: types need the package json-schema-to-typescript: npm install --save-dev json-schema-to-typescript\n$/)
  })

  test('have the projects that new creates, and the page of dev', async () => {
    const { code, errors } = await app.run(`node_modules/${CORE}/bin/extism-host.js`, 'new', 'plugin', '--lang', 'go')
    expect({ code, errors }).toEqual({ code: 0, errors: '' })
    expect(readdirSync(join(app.project, 'plugin')).sort()).toEqual(['.gitignore', 'go.mod', 'go.sum', 'main.go', 'package.json', 'test.js'])
    expect(readdirSync(join(app.project, 'node_modules', COMMAND, 'lib/dev/page')).sort()).toEqual(['index.html', 'page.css', 'page.js'])
    for (const [language, file] of [['rust', 'src/lib.rs'], ['assemblyscript', 'plugin.ts']]) {
      expect(existsSync(join(app.project, 'node_modules', COMMAND, 'lib/new', language, file))).toBe(true)
    }
  })

  test('say which client a connection needs', async () => {
    app.write('clients.cjs', `
      const { nats, postgres } = require('extism-host/connect')
      const none = () => {}
      for (const make of [() => nats({ publish: none, request: none, flush: none }), () => postgres({ connect: none, options: { max: 2 } }, { statements: {} })]) {
        try { make() } catch ({ code, message }) { console.log(code, message) }
      }`)
    expect((await app.run('clients.cjs')).output).toBe([
      'NOT_INSTALLED this connection needs the package @nats-io/transport-node: npm install @nats-io/transport-node',
      'NOT_INSTALLED this connection needs the package pg: npm install pg\n'
    ].join('\n'))
  })

  test('have types, for require and for import', async () => {
    const program = `
      import createPlugin, { type Plugin, openStore } from 'extism-host'
      import extismHost from 'extism-host/fastify'
      import { connect } from 'extism-host/connect'
      import Fastify from 'fastify'
      const app = Fastify()
      app.register(extismHost, { plugins: { guest: 'guest.wasm' } })
      export const plugin: Promise<Plugin> = createPlugin('guest.wasm', { store: { access: 'write' } })
      export const names: readonly string[] = app.extism.names
      export const store = openStore('memory:')
      createPlugin('guest.wasm', { functions: connect({}) })
      // @ts-expect-error -- there is no such option
      createPlugin('guest.wasm', { nonsense: true })`
    app.write('types.mts', program)
    app.write('types.cts', program)
    app.write('tsconfig.json', JSON.stringify({
      compilerOptions: { strict: true, noEmit: true, module: 'node16', moduleResolution: 'node16', target: 'es2022', lib: ['es2023', 'esnext.disposable'], types: ['node'], skipLibCheck: false, esModuleInterop: true },
      files: ['types.mts', 'types.cts']
    }))
    expect(await app.run(join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', '.')).toEqual({ code: 0, output: '', errors: '' })
  }, 120_000)
})

describe('the core', () => {
  let app
  beforeAll(() => { app = install('core', [CORE, binding]) })

  test('has no dependencies but the binary of this platform', async () => {
    const { dependencies = {}, optionalDependencies } = require(join(app.project, 'node_modules', CORE, 'package.json'))
    expect([Object.keys(dependencies), Object.keys(optionalDependencies)]).toEqual([[], [binding]])
    app.write('main.cjs', `
      require('extism-host').createPlugin(${GUEST}).then(async (plugin) => {
        console.log(await plugin.call('run'))
        await plugin.close()
      })`)
    expect(await app.run('main.cjs')).toEqual({ code: 0, output: 'null\n', errors: '' })
  })

  test('has no binary, and no sources', () => {
    const files = readdirSync(join(app.project, 'node_modules', CORE), { recursive: true })
    expect(files.filter((file) => /\.(node|rs|toml)$/.test(file))).toEqual([])
  })

  test.each(['fastify', 'connect', 'otel'])('says how to get the package %s', async (name) => {
    app.write(`${name}.cjs`, `try { require('extism-host/${name}') } catch ({ code, message }) { console.log(code, message) }`)
    const { output } = await app.run(`${name}.cjs`)
    expect(output).toBe(`NOT_INSTALLED @extism-host/${name} is not installed; run npm install @extism-host/${name}\n`)
  })

  test('says how to get the command, in one line', async () => {
    const said = await app.run('node_modules/extism-host/bin/extism-host.js', 'serve')
    expect(said).toEqual({
      code: 1, output: '', errors: 'extism-host: @extism-host/cli is not installed; run npm install @extism-host/cli, or run npx @extism-host/cli\n'
    })
  })
})

// Bundles outside the project have no node_modules to fall back on.
const esbuild = (file, option) => [file, 'esbuild', ['main.cjs', '--bundle', '--platform=node', option, `--outfile=${file}`]]

test.each([
  ['esbuild leaves the package out', ...esbuild('without-package.cjs', '--external:extism-host')],
  ['esbuild leaves the binary out', ...esbuild('without-binary.cjs', '--external:@extism-host/binding-*')],
  ['esbuild copies the binary', ...esbuild('../by-esbuild/main.cjs', '--loader:.node=copy')],
  ['ncc copies the binary, without an option', '../by-ncc/index.cjs', 'ncc', ['build', 'main.cjs', '--out', '../by-ncc']]
])('a bundle calls a plugin: %s', async (_, file, bundler, args) => {
  const app = install(`bundled-${file.replace(/\W/g, '-')}`, [CORE, binding])
  app.write('main.cjs', `
    require('extism-host').createPlugin(${GUEST}).then(async (plugin) => {
      console.log(await plugin.call('run'))
      await plugin.close()
    })`)
  execFileSync(join(ROOT, 'node_modules/.bin', bundler), args, { cwd: app.project, stdio: 'pipe' })
  expect(await app.run(file)).toEqual({ code: 0, output: 'null\n', errors: '' })
}, 60_000)

test('without the binary of this platform the error says which there are, and how to build it', async () => {
  const app = install('none', [CORE])
  app.write('main.cjs', "try { require('extism-host') } catch ({ code, message }) { console.log(code, message) }")
  const { output } = await app.run('main.cjs')
  expect(output).toMatch(/^UNSUPPORTED_PLATFORM extism-host has no binary for [\w-]+ here\. Its package @extism-host\/binding-[\w-]+ is missing/)
  // As on a platform that none was built for.
  app.write('other.cjs', "Object.defineProperty(process, 'arch', { value: 'sparc' }); require('./main.cjs')")
  expect((await app.run('other.cjs')).output).toMatch(/no binary for \w+-sparc\S* here\. There are binaries for [\w-]+\. Build it from source/)
})
