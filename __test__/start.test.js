'use strict'

// How plugins start: where what has been compiled for them is kept, and when their instances begin.

const { chmodSync, mkdtempSync, readdirSync, statSync, symlinkSync, writeFileSync } = require('node:fs')
const { rm } = require('node:fs/promises')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { createPlugin, MemoryStore, precompile } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { runNode } = require('./support/processes.js')

const start = pluginsOfEachTest()
const onUnix = process.platform === 'win32' ? test.skip : test

let wasm
let base

beforeAll(async () => { wasm = await guest('many') })
beforeEach(() => { base = mkdtempSync(join(tmpdir(), 'extism-host-start-')) })
// Wasmtime's own thread may still be writing to the cache.
afterEach(() => rm(base, { recursive: true, maxRetries: 20, retryDelay: 50 }))

/** The files below a directory, in which another process may be renaming some at this moment. */
function files (directory) {
  for (let left = 100; ; left--) {
    try {
      return readdirSync(directory, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
    } catch (error) {
      if (error.code !== 'ENOENT' || left === 0) throw error
    }
  }
}

/** The compiled modules in a cache. */
function kept (directory) {
  return files(join(directory, 'modules')).filter((file) => !file.endsWith('.tmp'))
}

describe('compileCache', () => {
  onUnix('names a directory, which is made private and then has what was compiled', async () => {
    const directory = join(base, 'not/there/yet')
    await start(wasm, { compileCache: { directory } })
    expect(statSync(directory).mode & 0o777).toBe(0o700)
    const compiled = kept(directory)
    expect(compiled.length).toBeGreaterThan(0)
    await start(wasm, { compileCache: { directory } })
    expect(kept(directory)).toEqual(compiled)
  })

  test('limits the bytes: the least recently used modules are evicted, and too large ones are not cached', async () => {
    const directory = join(base, 'cache')
    await start(wasm, { compileCache: { directory, maxBytes: 1 } })
    expect(kept(directory)).toEqual([])
    await start(wasm, { compileCache: { directory } })
    const [first] = kept(directory)
    const size = statSync(first).size
    const other = await assemble('(module (func (export "run")))')
    await start(other, { compileCache: { directory, maxBytes: size } })
    expect(kept(directory)).toHaveLength(1)
    expect(kept(directory)).not.toContain(first)
  })

  onUnix('refuses a directory that cannot be used, and says why', async () => {
    const open = join(base, 'open')
    await start(wasm, { compileCache: { directory: open } })
    const link = join(base, 'link')
    symlinkSync(open, link)
    chmodSync(open, 0o755)
    const file = join(base, 'file')
    writeFileSync(file, '')
    for (const [directory, why] of [
      [open, /it is not private.*755/],
      [link, /it is a link/],
      [file, /it is not a directory/],
      [join(file, 'below'), /it cannot be created/]
    ]) {
      const refused = createPluginWith({ directory })
      await expect(refused).rejects.toThrow(TypeError)
      await expect(refused).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(why) })
      await expect(refused).rejects.toThrow(directory)
    }
  })

  test.each([
    ['a string', 'directory', /a boolean or an object/],
    ['an array', [], /a boolean or an object/],
    ['an unknown key', { path: '.' }, /no "path"/],
    ['an empty directory', { directory: '' }, /path of a directory/],
    ['a directory that is not a string', { directory: 1 }, /path of a directory/],
    ['no bytes at all', { maxBytes: 0 }, /maxBytes must be/],
    ['half a byte', { maxBytes: 0.5 }, /maxBytes must be/]
  ])('refuses %s', async (_, compileCache, why) => {
    await expect(createPluginWith(compileCache)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(why) })
  })

  function createPluginWith (compileCache) {
    return start(wasm, { compileCache })
  }
})

describe('EXTISM_HOST_CACHE_DIR', () => {
  const before = process.env.EXTISM_HOST_CACHE_DIR
  afterEach(() => {
    if (before === undefined) delete process.env.EXTISM_HOST_CACHE_DIR
    else process.env.EXTISM_HOST_CACHE_DIR = before
  })

  test('names the directory if the option does not', async () => {
    const directory = process.env.EXTISM_HOST_CACHE_DIR = join(base, 'variable')
    await start(wasm)
    await start(wasm, { compileCache: true })
    await start(wasm, { compileCache: { maxBytes: 1_000_000 } })
    expect(kept(directory).length).toBeGreaterThan(0)
    const other = join(base, 'option')
    await start(wasm, { compileCache: { directory: other } })
    expect(kept(other).length).toBeGreaterThan(0)
  })

  test('is overridden by compileCache: false', async () => {
    process.env.EXTISM_HOST_CACHE_DIR = join(base, 'variable')
    await start(wasm, { compileCache: false })
    expect(readdirSync(base)).toEqual([])
  })

  test('that cannot be used is an error, as the option is', async () => {
    process.env.EXTISM_HOST_CACHE_DIR = join(base, 'file')
    writeFileSync(join(base, 'file'), '')
    await expect(start(wasm)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect((await (await start(wasm, { compileCache: false })).call('echo', 'x')).text()).toBe('x')
  })

  const onLinux = process.platform === 'linux' ? test.each : test.skip.each
  onLinux([['', []], ['off', []], [undefined, ['extism-host']]])('with %p decides on the default directory', async (value, made) => {
    const { code } = await runNode(['-e', "require('.').createPlugin('plugins/say-hello/say-hello.wasm', { useWasi: true })"], {
      env: { EXTISM_HOST_CACHE_DIR: value, XDG_CACHE_HOME: base }
    })
    expect(code).toBe(0)
    expect(readdirSync(base)).toEqual(made)
  }, 60_000)

  test.each(['', 'off'])('with "%s" turns the cache off, unless the option turns it on', async (value) => {
    process.env.EXTISM_HOST_CACHE_DIR = value
    const plugin = await start(wasm)
    expect((await plugin.call('echo', 'without a cache')).text()).toBe('without a cache')
    const directory = join(base, 'option')
    await start(wasm, { compileCache: { directory } })
    expect(kept(directory).length).toBeGreaterThan(0)
  })
})

/**
 * A guest that counts its initializations in a variable, which all instances share. Those that begin in
 * the same moment may count as one. All but the first go on with `then`.
 */
function counting (then = '') {
  return assemble(`(module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "var_get" (func $get (param i64) (result i64)))
    (import "extism:host/env" "var_set" (func $set (param i64 i64)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func $begun (result i64) (local $name i64)
      (local.set $name (call $alloc (i64.const 1)))
      (call $store (local.get $name) (i32.const 110))
      (call $get (local.get $name)))
    (func (export "_initialize") (local $name i64) (local $before i64)
      (local.set $before (call $length (call $begun)))
      (local.set $name (call $alloc (i64.const 1)))
      (call $store (local.get $name) (i32.const 110))
      (call $set (local.get $name) (call $alloc (i64.add (local.get $before) (i64.const 1))))
      (if (i64.ne (local.get $before) (i64.const 0)) (then ${then})))
    (func (export "begun") (local $begun i64)
      (local.set $begun (call $begun))
      (call $output (local.get $begun) (call $length (local.get $begun))))
    (func (export "work") (local $left i32)
      (local.set $left (i32.const 1000000))
      (loop $again
        (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))`)
}

/** How many instances of such a guest have begun to initialize themselves. */
async function begun (plugin) {
  return (await plugin.call('begun')).byteLength
}

function burst (plugin) {
  return Promise.all(Array.from({ length: 8 }, () => plugin.call('work')))
}

const milliseconds = (duration) => new Promise((resolve) => setTimeout(resolve, duration))

describe('precompile', () => {
  const SAY_HELLO = join(__dirname, '../plugins/say-hello/say-hello.wasm')

  /** How long createPlugin takes in a new process. */
  async function startOfAnother (compileCache) {
    const { output } = await runNode(['-e', `
      const { createPlugin } = require('.')
      const started = performance.now()
      createPlugin(${JSON.stringify(SAY_HELLO)}, { useWasi: true, compileCache: ${JSON.stringify(compileCache)} })
        .then(() => console.log(performance.now() - started))`])
    return Number(output)
  }

  test('makes the next start fast, in another process too', async () => {
    const directory = join(base, 'cache')
    expect(await precompile(SAY_HELLO, { useWasi: true, compileCache: { directory } })).toBeUndefined()
    const without = await startOfAnother(false)
    const after = await startOfAnother({ directory })
    expect(after).toBeGreaterThan(0)
    expect(after).toBeLessThan(without / 3)
  }, 60_000)

  test('compiles the same as createPlugin, for any other options', async () => {
    const compileCache = { directory: join(base, 'cache') }
    const memory = { maxPages: 100 }
    await precompile(Promise.resolve({ wasm: [{ data: wasm }] }), { memory, compileCache })
    const compiled = kept(compileCache.directory)
    expect(compiled.length).toBeGreaterThan(0)
    const others = {
      config: { key: 'value' }, timeoutMs: 5_000, instances: 2, eager: true, maxQueue: 5, maxOutputBytes: 1_000, store: new MemoryStore()
    }
    await start(wasm, { ...others, memory: { ...memory, maxVarBytes: 10 }, compileCache })
    expect(kept(compileCache.directory)).toEqual(compiled)
    await start(wasm, { memory: { maxPages: 99 }, compileCache })
    expect(kept(compileCache.directory)).toEqual(compiled)
    await start(wasm, { fuel: 1_000_000, compileCache })
    expect(kept(compileCache.directory).length).toBeGreaterThan(compiled.length)
  })

  test('runs nothing of the plugin', async () => {
    const trapping = await assemble('(module (func (export "_initialize") unreachable))')
    const compileCache = { directory: join(base, 'cache') }
    await precompile(trapping, { compileCache })
    const compiled = kept(compileCache.directory)
    await expect(createPlugin(trapping, { compileCache })).rejects.toMatchObject({ code: 'TRAP' })
    expect(kept(compileCache.directory)).toEqual(compiled)
  })

  test('keeps a process alive until it is done, and no longer', async () => {
    const directory = join(base, 'cache')
    const { code, output } = await runNode(['-e', `
      require('.').precompile(${JSON.stringify(SAY_HELLO)}, { useWasi: true, compileCache: { directory: ${JSON.stringify(directory)} } })
        .then(() => console.log('done'))`])
    expect({ code, output }).toEqual({ code: 0, output: 'done\n' })
  }, 60_000)

  test('rejects as createPlugin does', async () => {
    const compileCache = { directory: join(base, 'cache') }
    for (const [source, options, code] of [
      [join(base, 'missing.wasm'), {}, 'FILE_NOT_FOUND'],
      [new Uint8Array(8), {}, 'INVALID_WASM'],
      [SAY_HELLO, {}, 'MISSING_IMPORT'],
      [undefined, {}, 'INVALID_ARGUMENT'],
      [wasm, { instances: 0 }, 'INVALID_ARGUMENT'],
      [wasm, { compileCache: { directory: join(SAY_HELLO, 'below') } }, 'INVALID_ARGUMENT']
    ]) {
      await expect(precompile(source, { compileCache, ...options })).rejects.toMatchObject({ code })
    }
  })

  test('rejects if the cache cannot keep the result, although createPlugin would succeed', async () => {
    const compileCache = { directory: join(base, 'small'), maxBytes: 100 }
    await expect(precompile(wasm, { compileCache })).rejects.toMatchObject({
      code: 'CACHE_UNAVAILABLE',
      message: expect.stringMatching(/^the compiled plugin cannot be cached: the compiled module has \d+ bytes, compileCache.maxBytes is 100$/)
    })
    expect(readdirSync(join(compileCache.directory, 'modules'))).toEqual([])
    const plugin = await createPlugin(wasm, { compileCache })
    await plugin.close()
  })

  test('rejects if there is no cache to fill', async () => {
    await expect(precompile(wasm, { compileCache: false })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    const { output } = await runNode(['-e', `
      const { precompile } = require('.')
      const refused = (error) => console.log(error.code)
      const wasm = ${JSON.stringify(SAY_HELLO)}
      precompile(wasm, { useWasi: true }).catch(refused).then(() => {
        process.env.EXTISM_HOST_CACHE_DIR = 'off'
        return precompile(wasm, { useWasi: true }).catch(refused)
      })`], { env: { XDG_CACHE_HOME: '/dev/null/caches', HOME: '/dev/null' } })
    expect(output).toBe('CACHE_UNAVAILABLE\nCACHE_UNAVAILABLE\n')
  })
})

describe('instances after the first', () => {
  test('are started when there are more calls than instances, and never more than there may be', async () => {
    const plugin = await start(await counting(), { useWasi: true, instances: 3 })
    for (let call = 0; call < 50; call++) await plugin.call('work')
    expect(await begun(plugin)).toBe(1)
    while (await begun(plugin) < 2) await burst(plugin)
    for (let round = 0; round < 20; round++) await burst(plugin)
    expect(await begun(plugin)).toBeLessThanOrEqual(3)
  })

  test('are all there at once with eager: true', async () => {
    const plugin = await start(await counting(), { useWasi: true, instances: 3, eager: true })
    const all = await begun(plugin)
    expect(all).toBeGreaterThan(1)
    for (let round = 0; round < 20; round++) await burst(plugin)
    expect(await begun(plugin)).toBe(all)
  })

  test('that fail reject createPlugin with eager: true', async () => {
    const failing = start(await counting('unreachable'), { useWasi: true, instances: 2, eager: true })
    await expect(failing).rejects.toMatchObject({ code: 'TRAP' })
  })

  test('that fail lose no call, and are not tried all the time', async () => {
    const plugin = await start(await counting('unreachable'), { useWasi: true, instances: 4 })
    const until = performance.now() + 1_000
    while (performance.now() < until) await burst(plugin)
    // Three at once, then one after 100, 200, 400 ms; fewer where the machine is slow.
    const attempts = await begun(plugin) - 1
    expect(attempts).toBeGreaterThanOrEqual(1)
    expect(attempts).toBeLessThan(10)
  })

  test('that fail are tried again after a while', async () => {
    const plugin = await start(await counting('unreachable'), { useWasi: true, instances: 2 })
    while (await begun(plugin) < 2) await burst(plugin)
    await milliseconds(200)
    while (await begun(plugin) < 3) await burst(plugin)
  })

  test.each([
    ['loop forever', '(loop $again (br $again))'],
    ['wait where no interruption reaches them', `
      (i32.store (i32.const 16) (i32.const 1))
      (i64.store (i32.const 24) (i64.const 60000000000))
      (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))`]
  ])('that %s when they start hold up no call, and are given up when their time is over', async (_, then) => {
    const plugin = await start(await counting(then), { useWasi: true, instances: 3, timeoutMs: 300 })
    const until = performance.now() + 2_000
    while (performance.now() < until) await burst(plugin)
    expect(await begun(plugin)).toBeGreaterThan(1)
    expect(await begun(plugin)).toBeLessThan(10)
    await plugin.close()
  })

  test('are waited for by close, which lets accepted calls end', async () => {
    const wasm = await counting()
    for (let round = 0; round < 20; round++) {
      const plugin = await start(wasm, { useWasi: true, instances: 4 })
      const accepted = burst(plugin)
      if (round % 2 > 0) await milliseconds(round / 2)
      await plugin.close()
      expect(await accepted).toHaveLength(8)
    }
  })

  test('hold up no close that does not need them', async () => {
    // The initialization may run for 30 s.
    const plugin = await start(await counting('(loop $again (br $again))'), { useWasi: true, instances: 3 })
    while (await begun(plugin) < 2) await burst(plugin)
    await plugin.close()
  })

  test('are given up with the process', async () => {
    const wasm = await counting('(loop $again (br $again))')
    const { code, output } = await runNode(['-e', `
      const { createPlugin } = require('.')
      createPlugin(Buffer.from('${wasm.toString('base64')}', 'base64'), { useWasi: true, instances: 3 }).then(async (plugin) => {
        await Promise.all(Array.from({ length: 8 }, () => plugin.call('work')))
        console.log('leaving')
      })`])
    expect({ code, output }).toEqual({ code: 0, output: 'leaving\n' })
  })
})
