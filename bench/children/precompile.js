'use strict'

// Fills a compile cache: `node precompile.js <cache directory> <WASI or not> <plugins…>`. It is a process of its own, so that the compiler's memory does not count.

const { precompile } = require('../../index.js')

async function main ([directory, useWasi, ...plugins]) {
  for (const plugin of plugins) await precompile(plugin, { useWasi: useWasi === 'true', compileCache: { directory } })
}

main(process.argv.slice(2))
