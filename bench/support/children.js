'use strict'

// Child processes and temporary directories: whatever ends this process ends the ones with it, and
// removes the others. They hold nothing to be saved.

const { execFile, spawn } = require('node:child_process')
const { once } = require('node:events')
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { promisify } = require('node:util')

const ROOT = join(__dirname, '../..')

const children = new Set()
const directories = new Set()

process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
  for (const directory of directories) removeDirectory(directory)
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1))

/** Starts Node, which goes on until it ends or this process does. */
function start (args, { env, ...options } = {}) {
  // The SDK's use of WASI is announced as experimental by each process that does it.
  const all = { ...process.env, NODE_NO_WARNINGS: '1', ...env }
  const child = spawn(process.execPath, args, { cwd: ROOT, env: all, ...options })
  children.add(child)
  child.once('close', () => children.delete(child))
  return child
}

/** Runs Node to its end: what it has printed, as JSON, and how many milliseconds the process took. */
async function run (args, env) {
  const begin = performance.now()
  const child = start(args, { env, stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (chunk) => { output += chunk })
  const [code, signal] = await once(child, 'close')
  const milliseconds = performance.now() - begin
  if (code !== 0) throw new Error(`${args.join(' ')} ended with ${signal ?? `exit code ${code}`}`)
  return { printed: JSON.parse(output), milliseconds }
}

/** Runs another program to its end, and resolves to what it has printed. */
async function runProgram (program, args) {
  const running = promisify(execFile)(program, args)
  children.add(running.child)
  try {
    return (await running).stdout
  } finally {
    children.delete(running.child)
  }
}

function temporaryDirectory () {
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-bench-'))
  directories.add(directory)
  return directory
}

function removeDirectory (directory) {
  // A child that has just been killed may still write into it.
  rmSync(directory, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 })
  directories.delete(directory)
}

/** The environment in which compiled modules are kept in that directory, and not in the user's cache. */
function cacheEnvironment (directory) {
  return { XDG_CACHE_HOME: directory, EXTISM_HOST_CACHE_DIR: join(directory, 'extism-host') }
}

module.exports = { start, run, runProgram, temporaryDirectory, removeDirectory, cacheEnvironment }
