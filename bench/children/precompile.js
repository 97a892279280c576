'use strict'

// Fills a compile cache: `node precompile.js <cache directory> <WASI or not> <plugins…>`. The compiler's memory is this process's.

const { precompile } = require('../../index.js')

async function main ([directory, useWasi, ...plugins]) {
  for (const plugin of plugins) await precompile(plugin, { useWasi: useWasi === 'true', compileCache: { directory } })
}

main(process.argv.slice(2))
