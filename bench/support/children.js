'use strict'

// Child processes and temporary directories, which are killed and removed when this process ends for any reason.

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

/** Starts Node, which runs until it exits or this process ends. */
function start (args, { env, ...options } = {}) {
  // Node warns that WASI, which the SDK uses, is experimental.
  const all = { ...process.env, NODE_NO_WARNINGS: '1', ...env }
  const child = spawn(process.execPath, args, { cwd: ROOT, env: all, ...options })
  children.add(child)
  child.once('close', () => children.delete(child))
  return child
}

/** Runs Node to its end. Returns its output, parsed as JSON, and the duration of the process in milliseconds. */
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

/** Runs another program to its end, and resolves to its output. */
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

/** The environment that makes a directory the compile cache, instead of the user's. */
function cacheEnvironment (directory) {
  return { XDG_CACHE_HOME: directory, EXTISM_HOST_CACHE_DIR: join(directory, 'extism-host') }
}

module.exports = { start, run, runProgram, temporaryDirectory, removeDirectory, cacheEnvironment }
