'use strict'

const { precompile } = require('extism-host')
const { readConfig } = require('./config.js')
const { UsageError } = require('./usage-error.js')

/** What is to be compiled: a name for people, a source and options, which are part of what is compiled. */
function subjects (paths, { config, wasi, memoryMax }) {
  if ((config === undefined) === (paths.length === 0)) throw new UsageError('compile takes plugins, or --config with a file')
  if (config === undefined) {
    return paths.map((path) => ({ name: path, source: path, options: { useWasi: wasi, memory: { maxPages: memoryMax } } }))
  }
  return Object.entries(readConfig(config).plugins).map(([name, { source, permissions, smoke, ...options }]) => ({ name, source, options }))
}

async function compile (paths, flags) {
  const all = subjects(paths, flags)
  const compileCache = flags.cacheDir === undefined ? undefined : { directory: flags.cacheDir }
  for (const [index, { name, source, options }] of all.entries()) {
    const start = performance.now()
    process.stderr.write(`${index + 1} of ${all.length}: ${name} `)
    try {
      await precompile(source, { ...options, compileCache })
    } catch (error) {
      process.stderr.write('cannot be compiled\n')
      throw error
    }
    process.stderr.write(`compiled, or there already, in ${Math.round(performance.now() - start)} ms\n`)
  }
}

module.exports = { compile }
