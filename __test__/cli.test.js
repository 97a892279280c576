'use strict'

// The command `extism-host` as a process: call, inspect and compile.

const { execFile } = require('node:child_process')
const { mkdtempSync, readdirSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { assemble, guest } = require('./support/guest.js')
const { ROOT } = require('./support/processes.js')

const SAY_HELLO = 'plugins/say-hello/say-hello.wasm'
const VISITS = 'plugins/visits-rust/visits.wasm'

/** Runs the command with something on standard input; resolves to what it says, its output as bytes. */
function run (args, { input = '', env } = {}) {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, ['bin/extism-host.js', ...args], {
      cwd: ROOT, encoding: 'buffer', timeout: 60_000, env: { ...process.env, ...env }
    }, (error, output, errors) => resolve({ code: error === null ? 0 : error.code, output, text: String(output), errors: String(errors) }))
    child.stdin.on('error', () => {})
    child.stdin.end(input)
  })
}

let directory

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-cli-'))
})

afterEach(() => rmSync(directory, { recursive: true, maxRetries: 10 }))

async function file (name) {
  const path = join(directory, `${name}.wasm`)
  writeFileSync(path, await guest(name))
  return path
}

describe('call', () => {
  test('writes the output as it is', async () => {
    const { code, text, errors } = await run(['call', SAY_HELLO, 'say_hello', '--wasi', '--input', 'Jané'])
    expect({ code, text, errors }).toEqual({ code: 0, text: '👋 Hello Jané\nkey: hello, value: \nkey: message, value: ', errors: '' })
  })

  test('takes any bytes from standard input, and gives them back', async () => {
    const bytes = Buffer.from([0, 255, 10, 13, 128])
    const { code, output } = await run(['call', await file('many'), 'echo', '--stdin'], { input: bytes })
    expect(code).toBe(0)
    expect(output).toEqual(bytes)
  })

  test('calls as often as is said, in one instance, with a store', async () => {
    const { text } = await run(['call', VISITS, 'visit', '-i', 'Jo', '--loop', '3', '--store', 'memory:', '--store-write'])
    expect(text).toBe('visit 1 of Jo, after nobodyvisit 2 of Jo, after Jovisit 3 of Jo, after Jo')
  })

  test('does not let a plugin change a store unless it is said', async () => {
    const { code, errors } = await run(['call', VISITS, 'visit', '-i', 'Jo', '--store', 'memory:'])
    expect(code).toBe(1)
    expect(errors).toMatch(/^extism-host: PLUGIN_ERROR: .*the store says -2\n$/)
  })

  test('gives values of --config, which come before those of --set-config', async () => {
    const call = ['call', await file('many'), 'read_config', '-i', 'color', '--set-config', '{"color":"blue","size":"5"}']
    expect((await run(call)).text).toBe('blue')
    expect((await run([...call, '--config', 'color=a=b'])).text).toBe('a=b')
  })

  test('lets a plugin use the directories of --allow-path, and only read those with ro: before them', async () => {
    writeFileSync(join(directory, 'hello.txt'), 'hello')
    const wasm = await file('wasi')
    const call = (name, input, path) => run(['call', wasm, name, '-i', input, '--wasi', '--allow-path', path])
    for (const path of [directory, `${directory}:/mnt`, `ro:${directory}:/mnt`]) expect((await call('read', 'hello.txt', path)).text).toBe('hello')
    expect(await call('make', 'other.txt', `ro:${directory}`)).toMatchObject({ code: 1, errors: expect.stringMatching(/code (63|69|76)/) })
    expect(await call('make', 'new.txt', directory)).toMatchObject({ code: 0, errors: '' })
    expect(readdirSync(directory)).toEqual(expect.arrayContaining(['new.txt']))
    expect(readdirSync(directory)).not.toContain('other.txt')
  })

  test('takes a manifest', async () => {
    const manifest = join(directory, 'manifest.json')
    writeFileSync(manifest, JSON.stringify({ wasm: [{ path: await file('many') }], config: { color: 'red' } }))
    expect((await run(['call', manifest, 'read_config', '-i', 'color', '--manifest'])).text).toBe('red')
  })

  test('says in one line what went wrong, and ends with 1', async () => {
    for (const [args, message] of [
      [[SAY_HELLO, 'nope', '--wasi'], /^extism-host: FUNCTION_NOT_FOUND: .*"nope".*\n$/],
      [[SAY_HELLO, 'say_hello'], /^extism-host: MISSING_IMPORT: (?:(?!useWasi)[^])*: pass --wasi \(in a configuration, `wasi: true`\) to give the plugin WASI(?:(?!useWasi)[^])*$/],
      [['nowhere.wasm', 'say_hello'], /^extism-host: FILE_NOT_FOUND: .*nowhere.wasm.*\n$/],
      [['README.md', 'say_hello'], /^extism-host: INVALID_WASM: .*\n$/],
      [[await file('many'), 'loop_for_ever', '--timeout', '50'], /^extism-host: TIMEOUT: .*\n$/]
    ]) {
      const { code, text, errors } = await run(['call', ...args])
      expect({ code, text }).toEqual({ code: 1, text: '' })
      expect(errors).toMatch(message)
    }
  })

  test('ends with 2 where it is used wrongly', async () => {
    for (const [args, message] of [
      [['call'], /missing required argument 'plugin'/],
      [['call', SAY_HELLO, 'say_hello', '--timeout', 'soon'], /whole number/],
      [['call', SAY_HELLO, 'say_hello', '--log-level', 'loud'], /Allowed choices/],
      [['call', SAY_HELLO, 'say_hello', '--inptu', 'x'], /Did you mean --input/],
      [['call', SAY_HELLO, 'say_hello', '--input', 'x', '--stdin'], /cannot both be the input/],
      [['call', SAY_HELLO, 'say_hello', '--config', 'x'], /key=value/],
      [['call', SAY_HELLO, 'say_hello', '--set-config', 'x'], /must be JSON/],
      [['cal'], /Did you mean call/],
      [['compile'], /takes plugins, or --config/],
      [['serve'], /a plugin and a function, or --config/],
      [['serve', SAY_HELLO], /a function after the plugin/]
    ]) {
      const { code, errors } = await run(args)
      expect(errors).toMatch(message)
      expect(code).toBe(2)
    }
  })

  test('does not crash when nobody reads its output any more', async () => {
    const { errors } = await new Promise((resolve) => {
      const command = `node bin/extism-host.js call ${SAY_HELLO} say_hello --wasi --loop 5000 -i ${'x'.repeat(1_000)} | head -c 10`
      execFile('bash', ['-c', command], { cwd: ROOT }, (error, output, errors) => resolve({ error, output, errors }))
    })
    expect(errors).toBe('')
  })
})

describe('inspect', () => {
  test('says what a plugin exports, uses and needs', async () => {
    const { code, text } = await run(['inspect', VISITS])
    expect(code).toBe(0)
    expect(text).toMatch(/exports functions: +visit\n/)
    expect(text).toMatch(/uses: .*a store \(hostStoreGet, hostStoreIncrement, hostStoreSet\)/)
    expect(text).toMatch(/host functions to write: none/)
  })

  test('has it as JSON, with the host functions that nobody provides', async () => {
    const path = join(directory, 'needy.wasm')
    writeFileSync(path, await assemble(`(module
      (import "extism:host/user" "sendMail" (func (param i64) (result i64)))
      (import "env" "extism_http_request" (func (param i64 i64) (result i64)))
      (import "env" "sendFax" (func (param i64)))
      (import "env" "hostStoreGet" (func (param i64) (result i64)))
      (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
      (memory (export "memory") 1)
      (func $trap (unreachable))
      (start $trap)
      (func (export "run") (result i32) (i32.const 0)))`))
    const { code, text } = await run(['inspect', path, '--json'])
    expect(code).toBe(0)
    expect(JSON.parse(text)).toEqual({
      functions: ['run'],
      otherExports: [{ name: 'memory', kind: 'memory' }],
      needs: { wasi: true, http: true, variables: false, config: false, store: ['hostStoreGet'] },
      hostFunctions: [{ namespace: 'extism:host/user', name: 'sendMail', kind: 'function' }, { namespace: 'env', name: 'sendFax', kind: 'function' }],
      kernel: ['http_request'],
      wasi: ['proc_exit']
    })
  })

  test('does not hand to the terminal what a name could do to it', async () => {
    const path = join(directory, 'escape.wasm')
    writeFileSync(path, await assemble('(module (func (export "\\1b]0;owned\\07") (result i32) (i32.const 0)))'))
    const { text } = await run(['inspect', path])
    expect(text).toContain('\\u{1b}]0;owned\\u{7}')
  })

  test('says what is no plugin', async () => {
    const { code, errors } = await run(['inspect', 'README.md'])
    expect(code).toBe(1)
    expect(errors).toMatch(/^extism-host: INVALID_WASM: README.md .*\n$/)
  })
})

describe('compile', () => {
  test('fills the cache, and says how it goes', async () => {
    const cache = join(directory, 'cache')
    const { code, text, errors } = await run(['compile', SAY_HELLO, VISITS, '--wasi', '--cache-dir', cache])
    expect({ code, text }).toEqual({ code: 0, text: '' })
    expect(errors).toMatch(/^1 of 2: plugins\/say-hello\/say-hello.wasm compiled, or there already, in \d+ ms\n2 of 2: .* ms\n$/)
    expect(readdirSync(cache).length).toBeGreaterThan(0)
  })

  test('compiles the plugins of a configuration as serve opens them', async () => {
    const cache = join(directory, 'cache')
    const config = join(directory, 'extism-host.yaml')
    writeFileSync(config, `plugins: { visits: { wasm: ${JSON.stringify(join(ROOT, VISITS))}, fuel: 1000000, store: { access: write } } }\n`)
    const count = () => readdirSync(cache, { recursive: true }).filter((name) => !/\.(stats|toml)$/.test(name)).length
    const { code, errors } = await run(['compile', '--config', config, '--cache-dir', cache])
    expect({ code, errors }).toEqual({ code: 0, errors: expect.stringMatching(/^1 of 1: visits compiled, or there already, in \d+ ms\n$/) })
    const compiled = count()
    await run(['compile', '--config', config, '--cache-dir', cache])
    expect(count()).toBe(compiled)
    // Without the fuel it is something else.
    await run(['compile', VISITS, '--cache-dir', cache])
    expect(count()).toBeGreaterThan(compiled)
  })

  test('ends with 1 where a file cannot be compiled', async () => {
    const { code, errors } = await run(['compile', 'README.md', '--cache-dir', join(directory, 'cache')])
    expect(code).toBe(1)
    expect(errors).toMatch(/^1 of 1: README.md cannot be compiled\nextism-host: INVALID_WASM: .*\n$/)
  })
})
