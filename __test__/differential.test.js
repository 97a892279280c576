'use strict'

// Every guest of this repository makes the same calls on both runtimes: outputs and errors have to agree.

const { execFileSync } = require('node:child_process')
const { mkdtempSync, readdirSync, readFileSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { basename, join } = require('node:path')
const { isDeepStrictEqual } = require('node:util')
const { createPlugin, MemoryStore } = require('..')
const { guest } = require('./support/guest.js')
const { ROOT } = require('./support/processes.js')

const TIMEOUT_MS = 400

const INPUTS = {
  nothing: undefined,
  text: 'key 💜',
  'a number': '7',
  '100 KB': Buffer.alloc(100_000, 'extism '),
  'bytes that are not UTF-8': Buffer.from([0xFF, 0xC0, 0x00, 0x80])
}

/** Functions whose results depend on time: a call may end just before its time is over, or not. */
const TIMED = ['many.wat/compute', 'store.wat/incrementOften']

/** Calls that differ, as `guest/function(input)`, and why. One that no longer differs fails the test. */
const DIFFERENCES = [
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

async function outcome (call) {
  try {
    const output = await call
    return { output: output === null ? '' : Buffer.from(output.bytes()).toString('latin1') }
  } catch ({ code, message }) {
    // Only the plugin's own messages have to be the same.
    return code === 'PLUGIN_ERROR' ? { code, message } : { code }
  }
}

/** What comes of opening a guest, and of each call, by name. */
async function outcomes (name, wasm, runtime) {
  const store = new MemoryStore([['key 💜', 'value'], ['7', '7']])
  const opened = createPlugin(wasm, {
    runtime,
    store: { store, access: 'write' },
    useWasi: true,
    config: { 'key 💜': 'configured' },
    timeoutMs: TIMEOUT_MS,
    memory: { maxPages: 300 }
  })
  let plugin
  try {
    plugin = await opened
  } catch ({ code }) {
    return { open: { code } }
  }
  const all = {}
  for (const { name: function_, kind } of await plugin.getExports()) {
    if (kind !== 'function' || TIMED.includes(`${name}/${function_}`) || !await plugin.functionExists(function_)) continue
    for (const [title, input] of Object.entries(INPUTS)) {
      all[`${name}/${function_}(${title})`] = await outcome(plugin.call(function_, input))
    }
  }
  all.store = [...store]
  await plugin.close()
  return all
}

describe.each(GUESTS)('%s', (name, load) => {
  test('has the same outputs and errors on both runtimes', async () => {
    const wasm = await load()
    const [core, reference] = await Promise.all(['wasmtime', 'extism'].map((runtime) => outcomes(name, wasm, runtime)))
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
