'use strict'

// Handles the messages of a trigger until it is killed. Writes a line for each message whose call has succeeded, before the
// trigger acknowledges it.

const { appendFileSync } = require('node:fs')
const { createPlugin } = require('../..')
const { open } = require('./triggers.js')

/** The plugin, with a pause after each call, so that a kill comes upon messages that are not acknowledged. */
function recording (plugin, file) {
  return {
    async call (...args) {
      const output = await plugin.call(...args)
      appendFileSync(file, `${Buffer.from(args[1]).toString().split('\n')[1]}\n`)
      await new Promise((resolve) => setTimeout(resolve, 2))
      return output
    }
  }
}

async function main ([kind, url, wasm, file]) {
  const plugin = await createPlugin(wasm)
  await open(kind, url, { plugin: recording(plugin, file), function: 'unreliable', backoffMs: [10], concurrency: 8, onError () {} })
}

main(process.argv.slice(2))
