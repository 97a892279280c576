'use strict'

/**
 * Runs plugins that others have published on both runtimes, and compares. By hand, as it downloads some 20 MB and
 * needs Go and Cargo, which also verify what they download:
 *
 *     node __test__/published.js [part of a path]
 */

const { execFileSync } = require('node:child_process')
const { mkdtempSync, readdirSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { basename, dirname, join } = require('node:path')
const { isDeepStrictEqual } = require('node:util')
const { outcomes } = require('./support/outcomes.js')
const { ROOT } = require('./support/processes.js')

const GO_MODULE = 'github.com/extism/go-sdk@v1.7.1'
const GO_CHECKSUM = 'h1:lWJos6uY+tRFdlIHR+SJjwFDApY7OypS/2nMhiVQ9Sw='

/** Modules that others import from. */
const LIBRARIES = { 'main.wasm': 'lib.wasm' }

/** Files of which something differs, and why. */
const DIFFERENCES = {
  'fs.wasm': 'the extism crate cannot link what has both _start and _initialize'
}

/** The directory of the Go SDK, whose tests have plugins by TinyGo, Go, Rust, C and Haskell. */
function goSdk () {
  const { Dir, Sum } = JSON.parse(execFileSync('go', ['mod', 'download', '-json', GO_MODULE], { cwd: tmpdir() }))
  if (Sum !== GO_CHECKSUM) throw new Error(`${GO_MODULE} has the checksum ${Sum}, not ${GO_CHECKSUM}`)
  return join(Dir, 'wasm')
}

/** The directory of Extism's PDK for Rust. A plugin's lock file has its version and checksum. */
function rustPdk () {
  const { packages } = JSON.parse(execFileSync('cargo', [
    'metadata', '--locked', '--format-version', '1', '--manifest-path', join(ROOT, 'plugins/visits-rust/Cargo.toml')
  ], { maxBuffer: 1 << 26 }))
  return dirname(packages.find(({ name }) => name === 'extism-pdk').manifest_path)
}

function plugins (directory) {
  return readdirSync(directory, { recursive: true }).filter((name) => name.endsWith('.wasm')).map((name) => join(directory, name))
}

function manifest (path) {
  const library = LIBRARIES[basename(path)]
  return {
    wasm: library === undefined
      ? [{ path }]
      : [{ path: join(dirname(path), library), name: basename(library, '.wasm') }, { path, name: 'main' }]
  }
}

async function compare (path) {
  const name = basename(path)
  const results = []
  for (const runtime of ['wasmtime', 'extism']) {
    // Some plugins read and write files.
    const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
    writeFileSync(join(directory, 'test.txt'), 'hello world!')
    try {
      results.push(await outcomes(name, manifest(path), runtime, {
        allowedPaths: [{ host: directory, guest: '/mnt' }],
        config: { path: '/mnt/test.txt' }
      }))
    } finally {
      rmSync(directory, { recursive: true })
    }
  }
  const [core, reference] = results
  const calls = [...new Set([...Object.keys(core), ...Object.keys(reference)])]
  const different = calls.filter((call) => !isDeepStrictEqual(core[call], reference[call]))
  if (different.length > 0 && DIFFERENCES[name]) {
    console.log(`${name} differs: ${DIFFERENCES[name]}`)
  } else {
    for (const call of different) {
      console.log(`${name} differs: ${call}: ${JSON.stringify(core[call])}, ${JSON.stringify(reference[call])}`)
      process.exitCode = 1
    }
  }
  const outputs = Object.values(core).filter(({ output }) => output !== undefined).length
  console.log(`${name}: ${core.open ? `not opened: ${core.open.code}` : `${calls.length - 1} calls, ${outputs} with an output`}`)
}

async function main (part = '') {
  for (const directory of [goSdk(), rustPdk()]) {
    for (const path of plugins(directory).filter((path) => path.includes(part))) await compare(path)
  }
}

main(process.argv[2])
