'use strict'

const { readFile } = require('node:fs/promises')
const { precompile } = require('extism-host')
const { readConfig } = require('./config.js')
const { interfaceOf, providerOf } = require('./module-interface.js')
const { checkAllowedWithConfig, optionsOf, sourceOf } = require('./plugin-flags.js')
const { UsageError } = require('./usage-error.js')

/** The plugins to compile: a name to print, a source, and the options that it will be opened with. */
function pluginsToCompile (paths, { config, ...flags }) {
  if ((config === undefined) === (paths.length === 0)) throw new UsageError('compile takes either plugins or --config <file>')
  if (config === undefined) {
    return paths.map((path) => {
      const source = sourceOf(path, flags)
      return { name: path, source, options: optionsOf(source, flags) }
    })
  }
  checkAllowedWithConfig(flags, ['cacheDir'])
  return Object.entries(readConfig(config).plugins).map(([name, { source, permissions, smoke, functions, connect, ...options }]) => ({ name, source, options }))
}

/** The bytes of a module; none if it cannot be loaded, which the compiler reports. */
async function bytesOf ({ path, url }) {
  try {
    return path === undefined ? Buffer.from(await (await fetch(url)).arrayBuffer()) : await readFile(path)
  } catch {
    return undefined
  }
}

/** Functions in place of the host functions that a plugin imports: what is compiled depends on their types alone. */
async function placeholders ({ wasm = [] }) {
  const functions = { __proto__: null }
  const isMissing = (one) => one.kind === 'function' && providerOf(one) === undefined && !wasm.some(({ name }) => name === one.module)
  for (const { module, name } of (await Promise.all(wasm.map(bytesOf))).flatMap(importsOf).filter(isMissing)) {
    functions[module] ??= { __proto__: null }
    functions[module][name] = () => {}
  }
  return functions
}

function importsOf (bytes) {
  try {
    return interfaceOf(bytes).imports
  } catch {
    return []
  }
}

async function compile (paths, flags) {
  const all = pluginsToCompile(paths, flags)
  const compileCache = flags.cacheDir === undefined ? undefined : { directory: flags.cacheDir }
  for (const [index, { name, source, options }] of all.entries()) {
    const start = performance.now()
    process.stderr.write(`${index + 1} of ${all.length}: ${name} `)
    try {
      await precompile(source, { ...options, functions: await placeholders(source), compileCache })
    } catch (error) {
      process.stderr.write('failed\n')
      throw error
    }
    process.stderr.write(`is in the cache after ${Math.round(performance.now() - start)} ms\n`)
  }
}

module.exports = { compile }
