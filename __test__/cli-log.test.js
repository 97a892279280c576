'use strict'

// The log of `extism-host serve`: what its lines tell, as JSON and on a terminal.

const { spawn } = require('node:child_process')
const { once } = require('node:events')
const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { guest } = require('./support/guest.js')
const { canRun, ROOT } = require('./support/processes.js')
const { until } = require('./support/until.js')

// The flags of `script` are those of Linux.
const testOnLinux = process.platform === 'linux' ? test : test.skip

let directory
let child

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-log-'))
  writeFileSync(join(directory, 'many.wasm'), await guest('many'))
  writeFileSync(join(directory, 'config.yaml'), `
server: { port: 0, host: 127.0.0.1, drainMs: 0 }
plugins: { many: { wasm: many.wasm } }
routes: [{ url: /trap, plugin: many, function: trap }]
`)
})

afterEach(async () => {
  if (child?.exitCode === null && child.signalCode === null) {
    child.kill('SIGKILL')
    await once(child, 'close')
  }
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

/** Starts a command; resolves to its log when it listens. */
async function serve (command, args) {
  child = spawn(command, args, { cwd: ROOT })
  const server = { log: '', url: undefined, ended: once(child, 'close') }
  child.stderr.on('data', (chunk) => { server.log += chunk })
  child.stdout.on('data', (chunk) => { server.log += chunk })
  await until(() => /http:\/\/127\.0\.0\.1:\d+/.test(server.log))
  server.url = /http:\/\/127\.0\.0\.1:\d+/.exec(server.log)[0]
  return server
}

const serveArguments = () => ['bin/extism-host.js', 'serve', '--config', join(directory, 'config.yaml')]

test('is JSON, and its lines name a failed call, a reload and the shutdown', async () => {
  const server = await serve(process.execPath, serveArguments())
  await fetch(`${server.url}/trap`, { method: 'POST' })
  child.kill('SIGHUP')
  await until(() => server.log.includes('has been reloaded'))
  child.kill('SIGTERM')
  await server.ended
  const lines = server.log.trim().split('\n').map((line) => JSON.parse(line))
  expect(lines.find(({ level }) => level === 50)).toMatchObject({ plugin: 'many', function: 'trap', code: 'TRAP', reqId: 'req-1', req: { method: 'POST', url: '/trap' } })
  expect(lines.find(({ msg }) => msg === 'plugin "many" has been reloaded')).toMatchObject({ plugin: 'many' })
  expect(lines.find(({ msg }) => msg === 'shutting down on SIGTERM')).toMatchObject({ signal: 'SIGTERM' })
  expect(lines.at(-1).msg).toBe('shut down')
})

testOnLinux('is for people on a terminal', async () => {
  if (!canRun('script', ['--version'])) throw new Error('this test needs the program script: apt-get install bsdutils')
  const quote = (text) => `'${text}'`
  const server = await serve('script', ['-qfec', [process.execPath, ...serveArguments()].map(quote).join(' '), '/dev/null'])
  // eslint-disable-next-line no-control-regex
  const plain = () => server.log.replace(/\x1b\[\d+m/g, '')
  expect(plain()).toMatch(/^\[\d\d:\d\d:\d\d\.\d{3}\] INFO: Server listening at http/m)
  expect(plain()).not.toContain('"pid"')
  child.kill('SIGTERM')
  await server.ended
})
