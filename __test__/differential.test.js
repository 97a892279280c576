'use strict'

// Every guest of this repository makes the same calls on both runtimes: outputs and errors have to agree.

const { execFileSync } = require('node:child_process')
const { mkdtempSync, readdirSync, readFileSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { basename, join } = require('node:path')
const { isDeepStrictEqual } = require('node:util')
const { guest } = require('./support/guest.js')
const { outcomes } = require('./support/outcomes.js')
const { ROOT } = require('./support/processes.js')

/** Functions whose results depend on time: a call may end just before its time is over, or not. */
const TIMED = ['compute', 'incrementOften']

/** Calls that differ, as `guest/function(input)`, and why. One that no longer differs fails the test. */
const DIFFERENCES = [
  {
    calls: /^differences\.wat\/emptied\(.*\)$/,
    reason: 'an output of length 0 makes the output empty on the core; Extism\'s kernel ignores it at offset 0'
  },
  {
    calls: /^many\.wat\/fail\(bytes that are not UTF-8\)$/,
    reason: 'the extism crate replaces an error message that is not UTF-8; the core keeps it, with replacement characters'
  },
  {
    calls: /^store\.wat\/(increment|keys)\((nothing|text|a number|bytes that are not UTF-8)\)$/,
    reason: 'the output begins with the offset of a block, and the allocators lay blocks out differently'
  },
  {
    calls: /^store\.wat\/\w+\(100 KB\)$/,
    reason: 'alloc of more than 2³¹ − 1 bytes returns 0 on the core, which this guest does not check; on the extism crate, it is out of memory'
  },
  {
    calls: /^sleeping\.wat\/fault\(.*\)$/,
    reason: 'the core answers `poll_oneoff` with an address outside the memory with an error; Wasmtime traps'
  },
  {
    calls: /^wasi\.wat\/close_output\(nothing\)$/,
    reason: 'on the core, standard output cannot be closed: a file that is opened later would take its number'
  },
  {
    calls: /^wasi\.wat\/(huge_length|many_vectors)\(.*\)$/,
    reason: 'the core refuses too many bytes as invalid (28), as POSIX says; Wasmtime has no memory for them (48)'
  },
  {
    calls: /^wasi\.wat\/write_output\((100 KB|text|bytes that are not UTF-8)\)$/,
    reason: 'the core writes all buffers; Wasmtime writes the first and says so'
  }
]

/** Compiles a source in AssemblyScript, whose `abort_` takes the place of an import. */
function compiled (source) {
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-'))
  try {
    const wasm = join(directory, 'plugin.wasm')
    execFileSync(process.execPath, [
      'node_modules/assemblyscript/bin/asc.js', source, '--use', `abort=${source.replace('.ts', '')}/abort_`, '-o', wasm
    ], { cwd: ROOT, stdio: 'pipe' })
    return readFileSync(wasm)
  } finally {
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
}

const binary = (path) => [path, () => readFileSync(join(ROOT, path))]

const GUESTS = [
  binary('plugins/say-hello/say-hello.wasm'),
  binary('plugins/visits-go/visits.wasm'),
  binary('plugins/visits-rust/visits.wasm'),
  binary('__test__/guests/greeting.wasm'),
  ...['__test__/guests/greeting.ts', 'plugins/visits-assemblyscript/visits.ts'].map((path) => [path, () => compiled(path)]),
  ...readdirSync(join(__dirname, 'guests')).filter((name) => name.endsWith('.wat'))
    .map((name) => [name, () => guest(basename(name, '.wat'))])
]

describe.each(GUESTS)('%s', (name, load) => {
  test('has the same outputs and errors on both runtimes', async () => {
    const wasm = await load()
    const [core, reference] = await Promise.all(['wasmtime', 'extism'].map((runtime) => outcomes(name, wasm, runtime, { skip: TIMED })))
    expect(Object.keys(reference)).toEqual(Object.keys(core))
    const isKnown = (call) => DIFFERENCES.some(({ calls }) => calls.test(call))
    const different = []
    for (const [call, result] of Object.entries(core)) {
      if (!isKnown(call)) continue
      if (!isDeepStrictEqual(reference[call], result)) different.push(call)
      delete core[call]
      delete reference[call]
    }
    expect(reference).toEqual(core)
    for (const { calls } of DIFFERENCES.filter(({ calls }) => calls.source.startsWith(`^${name.replace('.', '\\.')}`))) {
      expect(different.filter((call) => calls.test(call))).not.toEqual([])
    }
  }, 60_000)
})
