'use strict'

const { precompile } = require('../plugin.js')

async function compile (paths, { wasi, memoryMax, cacheDir }) {
  for (const [place, path] of paths.entries()) {
    const start = performance.now()
    process.stderr.write(`${place + 1} of ${paths.length}: ${path} `)
    try {
      await precompile(path, {
        useWasi: wasi,
        memory: { maxPages: memoryMax },
        compileCache: cacheDir === undefined ? undefined : { directory: cacheDir }
      })
    } catch (error) {
      process.stderr.write('cannot be compiled\n')
      throw error
    }
    process.stderr.write(`compiled, or there already, in ${Math.round(performance.now() - start)} ms\n`)
  }
}

module.exports = { compile }
