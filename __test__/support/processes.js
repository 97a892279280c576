'use strict'

const { execFileSync, spawn } = require('node:child_process')
const { join } = require('node:path')

const ROOT = join(__dirname, '../..')

/** Whether a program can be run, and exits with 0. */
function canRun (program, args) {
  try {
    execFileSync(program, args, { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

/** Runs Node to its end; what takes longer than 60 s, or `timeout`, is killed, and has a signal. */
function runNode (args, { env, timeout = 60_000 } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, {
      cwd: ROOT,
      env: { ...process.env, ...env },
      timeout,
      killSignal: 'SIGKILL'
    })
    let output = ''
    let errors = ''
    child.stdout.on('data', (chunk) => { output += chunk })
    child.stderr.on('data', (chunk) => { errors += chunk })
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, output, errors }))
  })
}

/** Starts `server.js`, or another program with its arguments, on a free port; resolves when it listens. */
function startServer (env, program = 'server.js') {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [program].flat(), {
      cwd: ROOT,
      env: { ...process.env, PORT: '0', HOST: '127.0.0.1', DRAIN_MS: '0', ...env }
    })
    const ended = new Promise((resolve) => child.on('close', (code, signal) => resolve({ code, signal })))
    let output = ''
    child.stderr.on('data', (chunk) => { output += chunk })
    child.stdout.on('data', (chunk) => {
      output += chunk
      const listening = /Server listening at (http:[^"]+)/.exec(output)
      if (listening !== null) resolve({ child, ended, url: listening[1] })
    })
    child.on('close', () => reject(new Error(`${program} ended before it listened: ${output}`)))
  })
}

module.exports = { ROOT, canRun, runNode, startServer }
