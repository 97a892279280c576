'use strict'

// Runs the command that builds a plugin, again whenever a source changes.

const { spawn } = require('node:child_process')
const { createHash } = require('node:crypto')
const { readFile, stat } = require('node:fs/promises')
const { setTimeout: sleep } = require('node:timers/promises')
const { filesIn } = require('./files.js')

/** The interval of polling. Polling works on every file system, and also for files that editors replace. */
const INTERVAL_MS = 250

/** The part of a build's output to keep: its last characters. */
const MAX_OUTPUT = 65_536

/** Directories of dependencies and of what compilers make. */
const NO_SOURCES = ['node_modules', 'target']

/**
 * Maps the sources in a directory to the hashes of their content. Builds may write files beside the sources, so only
 * content counts: a build that writes the same file again does not cause another one.
 */
async function hashSources (directory, before = new Map()) {
  const hashes = new Map()
  for await (const path of filesIn(directory, NO_SOURCES)) {
    // An editor may remove a file at any moment.
    if (!path.endsWith('.wasm')) await hashFile(path, before, hashes).catch(() => {})
  }
  return hashes
}

async function hashFile (path, before, hashes) {
  const { mtimeMs, size } = await stat(path)
  const known = before.get(path)
  const isSame = known?.mtimeMs === mtimeMs && known.size === size
  const hash = isSame ? known.hash : createHash('sha1').update(await readFile(path)).digest('hex')
  hashes.set(path, { mtimeMs, size, hash })
}

const areSame = (before, after) => before.size === after.size && [...after].every(([path, { hash }]) => before.get(path)?.hash === hash)

/** Runs a command in a shell, and copies its output to standard error. Resolves to the reason of its failure, if it failed, and its output. */
function run (command, directory, signal) {
  return new Promise((resolve) => {
    const isGroup = process.platform !== 'win32'
    const child = spawn(command, { cwd: directory, shell: true, detached: isGroup, stdio: ['ignore', 'pipe', 'pipe'] })
    const stop = () => {
      try {
        // A compiler is a child of the shell, so the whole group has to end.
        if (isGroup) process.kill(-child.pid, 'SIGKILL')
        else child.kill()
      } catch {
        // It has just ended.
      }
    }
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        process.stderr.write(text)
        output = (output + text).slice(-MAX_OUTPUT)
      })
    }
    signal.addEventListener('abort', stop)
    const end = (reason) => {
      signal.removeEventListener('abort', stop)
      resolve({ reason, output })
    }
    child.on('error', (error) => end(error.message))
    child.on('close', (code) => end(code === 0 ? undefined : `the command exited with ${code}`))
  })
}

/** Builds now and after each change, until the signal is aborted. `onEnd` gets the result of `run`. */
async function buildOnChange (command, directory, { signal, onStart, onEnd }) {
  while (!signal.aborted) {
    let sources = await hashSources(directory)
    // Nothing would end a build that starts now.
    if (signal.aborted) return
    onStart()
    const result = await run(command, directory, signal)
    if (signal.aborted) return
    await onEnd(result)
    for (let isChanged = false; !isChanged && !signal.aborted;) {
      await sleep(INTERVAL_MS, undefined, { signal }).catch(() => {})
      const now = await hashSources(directory, sources)
      isChanged = !areSame(sources, now)
      if (!isChanged) sources = now
    }
  }
}

module.exports = { buildOnChange }
