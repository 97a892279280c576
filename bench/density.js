'use strict'

// Measures the memory of many plugins and instances, and how much of it is freed. See README.md.

const { execFileSync } = require('node:child_process')
const { readFileSync, readdirSync, writeFileSync } = require('node:fs')
const { join } = require('node:path')
const { createPlugin } = require('../index.js')
const { assemble } = require('../__test__/support/guest.js')
const { temporaryDirectory } = require('./support/children.js')
const { readOptions, printTable, save } = require('./support/measure.js')
const { SAY_HELLO } = require('./support/article.js')

const STEPS = 5

// The guest grows its memory, so each instance is replaced rather than reset.
const SMALL = (number) => `(module
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
  (memory (export "memory") 1)
  (func (export "run") (local $block i64)
    (drop (memory.grow (i32.const 1)))
    (local.set $block (call $alloc (i64.const 8)))
    (call $store (local.get $block) (i64.const ${number}))
    (call $output (local.get $block) (i64.const 8))))`

function taken () {
  const rollup = readFileSync('/proc/self/smaps_rollup', 'utf8')
  const kibibytes = (name) => Number(new RegExp(`^${name}: +(\\d+) kB$`, 'm').exec(rollup)[1])
  return {
    pss: kibibytes('Pss') / 1024,
    rss: kibibytes('Rss') / 1024,
    maps: readFileSync('/proc/self/maps', 'utf8').split('\n').length - 1,
    descriptors: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length
  }
}

const row = (name, { pss, rss, maps, descriptors, threads }) => ({
  '': name, 'PSS MiB': pss.toFixed(1), 'RSS MiB': rss.toFixed(1), maps: String(maps), descriptors: String(descriptors), threads: String(threads)
})

/** Opens different plugins, calls each once, and leaves all of them idle. */
async function openMany (sources, options) {
  const plugins = []
  for (const source of sources) plugins.push(await createPlugin(source, options))
  for (const [number, plugin] of plugins.entries()) {
    const output = await plugin.call(options.useWasi ? 'say_hello' : 'run', 'Jane Doe')
    if (!options.useWasi && output.getUint32(0, true) !== number) throw new Error('another plugin answered')
  }
  global.gc()
  return { after: taken(), close: () => Promise.all(plugins.map((plugin) => plugin.close())) }
}

async function main () {
  const options = readOptions({ plugins: 1000, large: 20, instances: 100_000, cycles: 5000 })
  const directory = temporaryDirectory()
  const compileCache = { directory }
  const write = (name, bytes) => {
    const path = join(directory, `${name}.wasm`)
    writeFileSync(path, bytes)
    return path
  }
  const sources = []
  for (let number = 0; number < options.plugins; number++) sources.push(write(number, await assemble(SMALL(number))))
  // A custom section makes each plugin different.
  const large = Array.from({ length: options.large }, (_, number) =>
    write(`large-${number}`, Buffer.concat([readFileSync(SAY_HELLO), Buffer.from([0, 5, 1, 0x78, number, 0, 0])])))
  for (const [useWasi, paths] of [[false, sources], [true, large]]) {
    execFileSync(process.execPath, [join(__dirname, 'children/precompile.js'), directory, String(useWasi), ...paths])
  }
  await (await createPlugin(sources[0], { compileCache })).close()
  global.gc()

  const results = {}
  const rows = [row('nothing', taken())]
  for (const [name, many, pluginOptions] of [
    [`${options.plugins} small plugins, each called once`, sources, { compileCache }],
    [`${options.large} plugins in Go, each called once`, large, { compileCache, useWasi: true }]
  ]) {
    const before = taken()
    const { after, close } = await openMany(many, pluginOptions)
    results[name] = [{ pssPerPlugin: (after.pss - before.pss) / many.length, rssPerPlugin: (after.rss - before.rss) / many.length }]
    rows.push({ ...row(name, after), 'PSS MiB each': results[name][0].pssPerPlugin.toFixed(3) })
    await close()
    global.gc()
    rows.push(row('after they are closed', taken()))
  }
  rows[0]['PSS MiB each'] = rows[2]['PSS MiB each'] = rows[4]['PSS MiB each'] = ''
  printTable('Many plugins in one process', rows)

  const steps = []
  for (const [name, count, run] of [
    ['instances of one plugin', options.instances, async (count) => {
      const plugin = await createPlugin(sources[0], { compileCache, isolation: 'call', instances: 2 })
      let left = count
      await Promise.all(Array.from({ length: 32 }, async () => { while (left-- > 0) await plugin.call('run') }))
      if (plugin.stats().made < count) throw new Error('instances were used again')
      await plugin.close()
    }],
    ['plugins opened, called and closed', options.cycles, async (count) => {
      for (let number = 0; number < count; number++) {
        const plugin = await createPlugin(sources[number % sources.length], { compileCache })
        await plugin.call('run')
        await plugin.close()
      }
    }]
  ]) {
    for (let step = 1; step <= STEPS; step++) {
      await run(Math.round(count / STEPS))
      global.gc()
      const after = taken()
      results[`${name}, step ${step}`] = [after]
      steps.push(row(`${Math.round(count / STEPS) * step} ${name}`, after))
    }
  }
  printTable('Instances made and dropped', steps)
  save(options, results)
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
