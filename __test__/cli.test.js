'use strict'

// The command `extism-host` as a process: call, inspect and compile.

const { execFile } = require('node:child_process')
const { createServer } = require('node:http')
const { copyFileSync, mkdtempSync, readdirSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const typescript = require('typescript')
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

/** Asks the host function `greet` for what it says to the input; what it exports of `env` is for an older PDK. */
const ASKING = `(module
  (import "extism:host/user" "greet" (func $greet (param i64) (result i64)))
  (import "env" "extism_input_offset" (func $input (result i64)))
  (import "env" "extism_length" (func $length (param i64) (result i64)))
  (import "env" "extism_output_set" (func $output (param i64 i64)))
  (func (export "ask") (result i32) (local $block i64)
    (local.set $block (call $greet (call $input)))
    (call $output (local.get $block) (call $length (local.get $block)))
    (i32.const 0)))`

let directory

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-cli-'))
})

afterEach(() => rmSync(directory, { recursive: true, maxRetries: 10 }))

function write (name, content) {
  const path = join(directory, name)
  writeFileSync(path, content)
  return path
}

async function file (name) {
  const path = join(directory, `${name}.wasm`)
  writeFileSync(path, await guest(name))
  return path
}

describe('call', () => {
  test('writes the output unchanged', async () => {
    const { code, text, errors } = await run(['call', SAY_HELLO, 'say_hello', '--wasi', '--input', 'Jané'])
    expect({ code, text, errors }).toEqual({ code: 0, text: '👋 Hello Jané\nkey: hello, value: \nkey: message, value: ', errors: '' })
  })

  test('takes any bytes from standard input, and gives them back', async () => {
    const bytes = Buffer.from([0, 255, 10, 13, 128])
    const { code, output } = await run(['call', await file('many'), 'echo', '--stdin'], { input: bytes })
    expect(code).toBe(0)
    expect(output).toEqual(bytes)
  })

  test('calls --loop times, in one instance, with a store', async () => {
    const { text } = await run(['call', VISITS, 'visit', '-i', 'Jo', '--loop', '3', '--store', 'memory:', '--store-write'])
    expect(text).toBe('visit 1 of Jo, after nobodyvisit 2 of Jo, after Jovisit 3 of Jo, after Jo')
  })

  test('does not let a plugin change a store without --store-write', async () => {
    const { code, errors } = await run(['call', VISITS, 'visit', '-i', 'Jo', '--store', 'memory:'])
    expect(code).toBe(1)
    expect(errors).toMatch(/^extism-host: PLUGIN_ERROR: .*the store says -2\n$/)
  })

  test('passes the values of --plugin-config, which override --set-config', async () => {
    const call = ['call', await file('many'), 'read_config', '-i', 'color', '--set-config', '{"color":"blue","size":"5"}']
    expect((await run(call)).text).toBe('blue')
    expect((await run([...call, '--plugin-config', 'color=a=b'])).text).toBe('a=b')
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
    const call = (path, ...flags) => run(['call', path, 'read_config', '-i', 'color', ...flags])
    expect((await call(manifest)).text).toBe('red')
    expect((await call(manifest, '--plugin-config', 'size=5')).text).toBe('red')
    const unnamed = join(directory, 'manifest')
    copyFileSync(manifest, unnamed)
    expect((await call(unnamed, '--manifest')).text).toBe('red')
  })

  test.each([
    ['CommonJS', 'host.js', "module.exports = { 'extism:host/user': { greet: (context, offset) => 'Hello ' + context.read(offset).text() } }"],
    ['CommonJS with names', 'host.cjs', "exports.env = { greet: (context, offset) => 'Hello ' + context.read(offset).text() }"],
    ['a compiled ES module', 'host.cjs', `Object.defineProperty(exports, '__esModule', { value: true })
      exports.default = { env: { greet: (context, offset) => 'Hello ' + context.read(offset).text() } }`],
    ['an ES module', 'host.mjs', "export default { env: { greet: async (context, offset) => 'Hello ' + context.read(offset).text() } }"],
    ['an ES module with names', 'host.mjs', "export const env = { greet: (context, offset) => 'Hello ' + context.read(offset).text() }"]
  ])('takes host functions from %s', async (_, name, content) => {
    const plugin = write('asking.wasm', await assemble(ASKING))
    const { text, errors, code } = await run(['call', plugin, 'ask', '-i', 'Jané', '--functions', write(name, content)])
    expect({ text, errors, code }).toEqual({ text: 'Hello Jané', errors: '', code: 0 })
  })

  test("runs the article's plugin with a host function of the user's own", async () => {
    const functions = write('host.js', "exports.env = { hostMemoryGet: (context, key) => 'the value of ' + context.read(key).text() }")
    const { text } = await run(['call', SAY_HELLO, 'say_hello', '--wasi', '-i', 'Jane', '--functions', functions])
    expect(text).toBe('👋 Hello Jane\nkey: hello, value: the value of hello\nkey: message, value: the value of message')
  })

  test('ends when the call has ended, even if host functions have left timers open', async () => {
    const functions = write('host.js', "setInterval(() => {}, 1_000); exports.env = { greet: () => 'x'.repeat(500_000) }")
    const { text, code } = await run(['call', write('asking.wasm', await assemble(ASKING)), 'ask', '--functions', functions])
    expect({ length: text.length, code }).toEqual({ length: 500_000, code: 0 })
  })

  test('prints in one line why host functions cannot be loaded', async () => {
    const plugin = write('asking.wasm', await assemble(ASKING))
    for (const [file, message] of [
      ['nowhere.js', /^extism-host: FILE_NOT_FOUND: cannot load host functions from nowhere.js: .*\n$/],
      [write('bad.js', 'module.exports = {'), /^extism-host: INVALID_ARGUMENT: cannot load host functions from .*bad.js: Unexpected.*\n$/],
      [write('throws.mjs', 'throw new Error("no database\\nhere")'), /^extism-host: INVALID_ARGUMENT: .*throws.mjs: no database\n$/],
      [write('number.mjs', 'export const limit = 5'), /^extism-host: INVALID_ARGUMENT: functions\["limit"\] must be an object.*\n$/],
      [write('other.mjs', 'export const env = { gret () {} }'), /^extism-host: MISSING_IMPORT: .*did you mean "gret"\?\n$/]
    ]) {
      const { code, errors } = await run(['call', plugin, 'ask', '--functions', file])
      expect(errors).toMatch(message)
      expect(code).toBe(1)
    }
  })

  test('links further modules under their names', async () => {
    const plugin = write('plugin.wasm', await assemble('(module (import "numbers" "seven" (func $seven (result i32))) (func (export "run") (result i32) (i32.sub (call $seven) (i32.const 7))))'))
    const numbers = write('numbers.wasm', await assemble('(module (func (export "seven") (result i32) (i32.const 7)))'))
    const manifest = write('plugin.json', JSON.stringify({ wasm: [{ path: plugin, name: 'sum' }] }))
    for (const path of [plugin, manifest]) {
      const { code, errors } = await run(['call', path, 'run', '--link', `numbers=${numbers}`])
      expect({ code, errors }).toEqual({ code: 0, errors: '' })
    }
  })

  test('lets a plugin read the headers of responses', async () => {
    const server = createServer((request, response) => response.end('hello')).listen(0, '127.0.0.1')
    try {
      await new Promise((resolve) => server.once('listening', resolve))
      const call = ['call', await file('http'), 'headers', '-i', JSON.stringify({ url: `http://127.0.0.1:${server.address().port}/` }), '--allow-host', '127.0.0.1']
      expect((await run(call)).text).not.toContain('content-length')
      expect((await run([...call, '--allow-http-response-headers'])).text).toContain('content-length')
    } finally {
      server.close()
    }
  })

  test('prints an error in one line, and exits with 1', async () => {
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

  test('exits with 2 on wrong usage', async () => {
    for (const [args, message] of [
      [['call'], /missing required argument 'plugin'/],
      [['call', SAY_HELLO, 'say_hello', '--timeout', 'soon'], /whole number/],
      [['call', SAY_HELLO, 'say_hello', '--log-level', 'loud'], /Allowed choices/],
      [['call', SAY_HELLO, 'say_hello', '--inptu', 'x'], /Did you mean --input/],
      [['call', SAY_HELLO, 'say_hello', '--input', 'x', '--stdin'], /cannot be combined/],
      [['call', SAY_HELLO, 'say_hello', '--plugin-config', 'x'], /--plugin-config must be key=value, not "x"/],
      [['call', SAY_HELLO, 'say_hello', '--config', 'a=b'], /unknown option '--config'/],
      [['call', SAY_HELLO, 'say_hello', '--store-write'], /needs --store/],
      [['call', SAY_HELLO, 'say_hello', '--link', 'x'], /--link must be name=file/],
      [['call', SAY_HELLO, 'say_hello', '--link', 'main=x.wasm'], /"main": that is the plugin itself/],
      [['call', 'README.md', 'say_hello', '-m'], /README.md must be a manifest, but is not valid JSON/],
      [['serve', '--config', 'x.yaml', '--memory-max', '5'], /--memory-max cannot go with --config/],
      [['compile', '--config', 'x.yaml', '--wasi'], /--wasi cannot go with --config/],
      [['call', SAY_HELLO, 'say_hello', '--set-config', 'x'], /must be valid JSON/],
      [['cal'], /Did you mean call/],
      [['compile'], /either plugins or --config/],
      [['serve'], /either a plugin and a function, or --config/],
      [['serve', SAY_HELLO], /a function after the plugin/]
    ]) {
      const { code, errors } = await run(args)
      expect(errors).toMatch(message)
      expect(code).toBe(2)
    }
  })

  test('does not crash when the reader of its output exits', async () => {
    const { errors } = await new Promise((resolve) => {
      const command = `node bin/extism-host.js call ${SAY_HELLO} say_hello --wasi --loop 5000 -i ${'x'.repeat(1_000)} | head -c 10`
      execFile('bash', ['-c', command], { cwd: ROOT }, (error, output, errors) => resolve({ error, output, errors }))
    })
    expect(errors).toBe('')
  })
})

describe('inspect', () => {
  test('prints what a plugin exports, uses and needs', async () => {
    const { code, text } = await run(['inspect', VISITS])
    expect(code).toBe(0)
    expect(text).toMatch(/exports functions: +visit\(\) -> i32\n/)
    expect(text).toMatch(/uses: .*a store \(hostStoreGet, hostStoreIncrement, hostStoreSet\)/)
    expect(text).toMatch(/host functions to write: none/)
  })

  test('prints JSON, with the host functions that nobody provides', async () => {
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
      signatures: { run: { params: [], results: ['i32'] } },
      otherExports: [{ name: 'memory', kind: 'memory' }],
      needs: { wasi: true, http: true, variables: false, config: false, store: ['hostStoreGet'] },
      hostFunctions: [
        { namespace: 'extism:host/user', name: 'sendMail', kind: 'function', params: ['i64'], results: ['i64'] },
        { namespace: 'env', name: 'sendFax', kind: 'function', params: ['i64'], results: [] }
      ],
      kernel: ['http_request'],
      wasi: ['proc_exit']
    })
  })

  test('reads types between imports and exports of every kind', async () => {
    const path = write('kinds.wasm', await assemble(`(module
      (import "a" "table" (table 1 2 funcref))
      (import "a" "memory" (memory 1 2))
      (import "a" "global" (global (mut i64)))
      (import "a" "none" (func))
      (import "a" "all" (func (param i32 i64 f32 f64) (result f64)))
      (func $start) (start $start)
      (func (export "odd") (param i64) (result i32 i32) (i32.const 0) (i32.const 0))
      (export "again" (func 1)) (export "table" (table 0)) (export "global" (global 0)))`))
    const { text } = await run(['inspect', path])
    expect(text).toMatch(/exports functions: +again\(i32, i64, f32, f64\) -> f64, odd\(i64\) -> \(i32, i32\)\n/)
    expect(text).toMatch(/host functions to write: a table, a memory, a global, a none\(\) -> \(\), a all\(i32, i64, f32, f64\) -> f64\n/)
  })

  describe('--stub', () => {
    const NEEDY = `(module
      (import "extism:host/user" "greet" (func (param i64) (result i64)))
      (import "extism:host/user" "count" (func (param i32 f64) (result i32)))
      (import "my shop" "it's\\\\\\0aodd" (func (param i64)))
      (import "__proto__" "__proto__" (func))
      (import "extism:host/user" "memory" (memory 1)))`
    let plugin

    beforeEach(async () => { plugin = write('needy.wasm', await assemble(NEEDY)) })

    test('writes a module of JavaScript that has each host function', async () => {
      const { text } = await run(['inspect', plugin, '--stub', 'js'])
      const functions = require(write('host.js', text))
      expect(Object.keys(functions)).toEqual(['extism:host/user', 'my shop', '__proto__'])
      expect(Object.keys(functions['extism:host/user'])).toEqual(['greet', 'count'])
      expect(() => functions['my shop']["it's\\\nodd"]()).toThrow("it's\\\nodd is not written yet")
      expect(Object.hasOwn(functions, '__proto__')).toBe(true)
    })

    test('of which a call says what is still to be written', async () => {
      const path = write('asking.wasm', await assemble(ASKING))
      const { text } = await run(['inspect', path, '--stub', 'js'])
      const { errors, code } = await run(['call', path, 'ask', '--functions', write('host.js', text)])
      expect({ errors, code }).toEqual({ errors: 'extism-host: greet is not written yet\n', code: 1 })
    })

    test('writes one of TypeScript, whose types are right', async () => {
      const { text } = await run(['inspect', plugin, '--stub', 'ts'])
      expect(text).toContain('greet (context: CallContext, arg0: bigint): bigint | string | Uint8Array {')
      expect(text).toContain('count (context: CallContext, arg0: number, arg1: number): number {')
      const program = typescript.createProgram([write('host.ts', text)], {
        noEmit: true,
        strict: true,
        skipLibCheck: true,
        types: ['node'],
        typeRoots: [join(ROOT, 'node_modules/@types')],
        target: typescript.ScriptTarget.ES2022,
        module: typescript.ModuleKind.ESNext,
        moduleResolution: typescript.ModuleResolutionKind.Bundler,
        paths: { 'extism-host': [join(ROOT, 'index.d.ts')] }
      })
      const messages = typescript.getPreEmitDiagnostics(program).map(({ messageText }) => typescript.flattenDiagnosticMessageText(messageText, '\n'))
      expect(messages).toEqual([])
    })
  })

  test('escapes control characters in names for the terminal', async () => {
    const path = join(directory, 'escape.wasm')
    writeFileSync(path, await assemble('(module (func (export "\\1b]0;owned\\07") (result i32) (i32.const 0)))'))
    const { text } = await run(['inspect', path])
    expect(text).toContain('\\u{1b}]0;owned\\u{7}')
  })

  test('rejects a file that is not a plugin', async () => {
    const { code, errors } = await run(['inspect', 'README.md'])
    expect(code).toBe(1)
    expect(errors).toMatch(/^extism-host: INVALID_WASM: README.md .*\n$/)
  })
})

describe('compile', () => {
  test('fills the cache, and prints its progress', async () => {
    const cache = join(directory, 'cache')
    const { code, text, errors } = await run(['compile', SAY_HELLO, VISITS, '--wasi', '--cache-dir', cache])
    expect({ code, text }).toEqual({ code: 0, text: '' })
    expect(errors).toMatch(/^1 of 2: plugins\/say-hello\/say-hello.wasm is in the cache after \d+ ms\n2 of 2: .* ms\n$/)
    expect(readdirSync(cache).length).toBeGreaterThan(0)
  })

  test('compiles the plugins of a configuration as serve opens them', async () => {
    const cache = join(directory, 'cache')
    const config = join(directory, 'extism-host.yaml')
    writeFileSync(config, `plugins: { visits: { wasm: ${JSON.stringify(join(ROOT, VISITS))}, fuel: 1000000, store: { access: write } } }\n`)
    const count = () => readdirSync(cache, { recursive: true }).filter((name) => !/\.(stats|toml)$/.test(name)).length
    const { code, errors } = await run(['compile', '--config', config, '--cache-dir', cache])
    expect({ code, errors }).toEqual({ code: 0, errors: expect.stringMatching(/^1 of 1: visits is in the cache after \d+ ms\n$/) })
    const compiled = count()
    await run(['compile', '--config', config, '--cache-dir', cache])
    expect(count()).toBe(compiled)
    // Without the fuel it is something else.
    await run(['compile', VISITS, '--cache-dir', cache])
    expect(count()).toBeGreaterThan(compiled)
  })

  test('needs the types of host functions alone: the plugin is there already when it is opened with them', async () => {
    const cache = join(directory, 'cache')
    const plugin = write('asking.wasm', await assemble(ASKING))
    const count = () => readdirSync(cache, { recursive: true }).filter((name) => !/\.(stats|toml)$/.test(name)).length
    const { code, errors } = await run(['compile', plugin, '--cache-dir', cache])
    expect({ code, errors }).toEqual({ code: 0, errors: expect.stringMatching(/is in the cache after/) })
    const compiled = count()
    for (const functions of [
      "exports['extism:host/user'] = { greet: () => 'hello' }",
      "exports.env = { greet: () => 'hello' }",
      "exports['extism:host/user'] = { other () {}, greet: () => 'hello' }; exports.shop = { price () {} }"
    ]) {
      const { text } = await run(['call', plugin, 'ask', '--functions', write('host.js', functions)], { env: { EXTISM_HOST_CACHE_DIR: cache } })
      expect(text).toBe('hello')
      expect(count()).toBe(compiled)
    }
    // One that replaces a function of the library may change how the plugin is linked.
    const functions = write('host.js', "exports.env = { hostMemoryGet () {}, greet: () => 'hello' }")
    await run(['call', plugin, 'ask', '--functions', functions], { env: { EXTISM_HOST_CACHE_DIR: cache } })
    expect(count()).toBeGreaterThan(compiled)
  })

  test('calls the function of the namespace that the plugin names, whatever the cache has', async () => {
    const cache = join(directory, 'cache')
    const plugin = write('asking.wasm', await assemble(ASKING))
    const ask = async (functions) => (await run(['call', plugin, 'ask', '--functions', write('host.js', functions)], { env: { EXTISM_HOST_CACHE_DIR: cache } })).text
    expect(await ask("exports.env = { greet: () => 'env' }")).toBe('env')
    expect(await ask("exports.env = { greet: () => 'env' }; exports['extism:host/user'] = { greet: () => 'user' }")).toBe('user')
    expect(await ask("exports.env = { greet: () => 'env' }")).toBe('env')
  })

  test('ends with 1 where a file cannot be compiled', async () => {
    const { code, errors } = await run(['compile', 'README.md', '--cache-dir', join(directory, 'cache')])
    expect(code).toBe(1)
    expect(errors).toMatch(/^1 of 1: README.md failed\nextism-host: INVALID_WASM: .*\n$/)
  })
})
