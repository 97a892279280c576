'use strict'

// How plugins start: where what has been compiled for them is kept, and when their instances begin.

const { chmodSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { runNode } = require('./support/processes.js')

const start = pluginsOfEachTest()
const onUnix = process.platform === 'win32' ? test.skip : test

let wasm
let base

beforeAll(async () => { wasm = await guest('many') })
beforeEach(() => { base = mkdtempSync(join(tmpdir(), 'extism-host-start-')) })
afterEach(() => { rmSync(base, { recursive: true }) })

function files (directory) {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
}

/** The compiled modules in a cache. */
function kept (directory) {
  return files(join(directory, 'modules')).filter((file) => !/stats|wip/.test(file))
}

/** The configurations in a cache, by the size that they allow. */
function limits (directory) {
  return files(directory)
    .filter((file) => file.endsWith('.toml'))
    .map((file) => Number(/limit = "(\d+)"/.exec(readFileSync(file, 'utf8'))[1]))
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

  test('limits the bytes, and plugins with other limits for one directory leave each other alone', async () => {
    const directory = join(base, 'cache')
    await start(wasm, { compileCache: { directory, maxBytes: 1_000_000 } })
    await start(wasm, { compileCache: { directory } })
    await start(wasm, { compileCache: { directory, maxBytes: 1_000_000 } })
    expect(limits(directory).sort()).toEqual([1_000_000, 536_870_912])
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
      [join(file, 'below'), /it cannot be made/]
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
    ['a directory that is no string', { directory: 1 }, /path of a directory/],
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

  test('names the directory where the option names none', async () => {
    const directory = process.env.EXTISM_HOST_CACHE_DIR = join(base, 'variable')
    await start(wasm)
    await start(wasm, { compileCache: true })
    await start(wasm, { compileCache: { maxBytes: 1_000_000 } })
    expect(kept(directory).length).toBeGreaterThan(0)
    expect(limits(directory).sort()).toEqual([1_000_000, 536_870_912])
    const other = join(base, 'option')
    await start(wasm, { compileCache: { directory: other } })
    expect(limits(other)).toEqual([536_870_912])
  })

  test('does not hold against compileCache: false', async () => {
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
  })

  test.each(['', 'off'])('with "%s" turns the cache off, unless the option turns it on', async (value) => {
    process.env.EXTISM_HOST_CACHE_DIR = value
    const plugin = await start(wasm)
    expect((await plugin.call('echo', 'without a cache')).text()).toBe('without a cache')
    const directory = join(base, 'option')
    await start(wasm, { compileCache: { directory } })
    expect(kept(directory).length).toBeGreaterThan(0)
  })
})
