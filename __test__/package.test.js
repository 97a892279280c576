'use strict'

// What `npm pack` gives, installed in an empty project.

const { execFileSync, execFile } = require('node:child_process')
const { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { dirname, join } = require('node:path')
const { dependencies } = require('../package.json')
const { ROOT } = require('./support/processes.js')

let project

beforeAll(() => {
  project = mkdtempSync(join(tmpdir(), 'extism-host-package-'))
  const [{ filename }] = JSON.parse(execFileSync('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', project], { cwd: ROOT, stdio: 'pipe' }))
  const modules = join(project, 'node_modules')
  mkdirSync(join(modules, 'extism-host'), { recursive: true })
  execFileSync('tar', ['-xzf', join(project, filename), '-C', join(modules, 'extism-host'), '--strip-components=1'])
  // As installed, but from here: a test has no registry.
  for (const name of [...Object.keys(dependencies), '@types/node']) {
    mkdirSync(dirname(join(modules, name)), { recursive: true })
    symlinkSync(join(ROOT, 'node_modules', name), join(modules, name), 'dir')
  }
})

afterAll(() => rmSync(project, { recursive: true, maxRetries: 10 }))

function run (file, ...args) {
  return new Promise((resolve) => {
    execFile(process.execPath, [file, ...args], { cwd: project }, (error, output, errors) => resolve({ code: error?.code ?? 0, output, errors }))
  })
}

const GUEST = 'Buffer.from("AGFzbQEAAAABBQFgAAF/AwIBAAcHAQNydW4AAAoGAQQAQQAL", "base64")'

test('works by require', async () => {
  writeFileSync(join(project, 'main.cjs'), `
    const { createPlugin, openStore } = require('extism-host')
    const Fastify = require('fastify')
    async function main () {
      const app = Fastify()
      app.register(require('extism-host/fastify'), { plugins: { guest: ${GUEST} }, routes: [{ url: '/', plugin: 'guest', function: 'run' }] })
      console.log((await app.inject({ method: 'POST', url: '/' })).statusCode, typeof createPlugin, (await openStore('memory:')).constructor.name)
      await app.close()
    }
    main()`)
  expect(await run('main.cjs')).toEqual({ code: 0, output: '200 function Store\n', errors: '' })
})

test('works by import', async () => {
  writeFileSync(join(project, 'main.mjs'), `
    import createPlugin, { MemoryStore } from 'extism-host'
    import extismHost from 'extism-host/fastify'
    const plugin = await createPlugin(${GUEST})
    console.log(await plugin.call('run'), typeof extismHost, new MemoryStore().size)
    await plugin.close()`)
  expect(await run('main.mjs')).toEqual({ code: 0, output: 'null function 0\n', errors: '' })
})

test('has the command', async () => {
  const { code, output } = await run('node_modules/extism-host/bin/extism-host.js', '--version')
  expect({ code, output }).toEqual({ code: 0, output: `${require('../package.json').version}\n` })
})

test('has its types, for require and for import', async () => {
  const program = `
    import createPlugin, { type Plugin, openStore } from 'extism-host'
    import extismHost from 'extism-host/fastify'
    import Fastify from 'fastify'
    const app = Fastify()
    app.register(extismHost, { plugins: { guest: 'guest.wasm' } })
    export const plugin: Promise<Plugin> = createPlugin('guest.wasm', { store: { access: 'write' } })
    export const names: readonly string[] = app.extism.names
    export const store = openStore('memory:')
    // @ts-expect-error -- there is no such option
    createPlugin('guest.wasm', { nonsense: true })`
  writeFileSync(join(project, 'types.mts'), program)
  writeFileSync(join(project, 'types.cts'), program)
  writeFileSync(join(project, 'tsconfig.json'), JSON.stringify({
    compilerOptions: { strict: true, noEmit: true, module: 'node16', moduleResolution: 'node16', target: 'es2022', lib: ['es2023', 'esnext.disposable'], types: ['node'], skipLibCheck: false, esModuleInterop: true },
    files: ['types.mts', 'types.cts']
  }))
  expect(await run(join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', '.')).toEqual({ code: 0, output: '', errors: '' })
}, 120_000)
