'use strict'

const { buffer } = require('node:stream/consumers')
const { createPlugin, openStore } = require('extism-host')
const { loadFunctions } = require('./functions.js')
const { optionsOf, permissionsOf, sourceOf } = require('./plugin-flags.js')
const { UsageError } = require('./usage-error.js')

/** Writes the plugin's messages to standard error, because its output goes to standard output. */
const toStandardError = Object.fromEntries(['trace', 'debug', 'info', 'warn', 'error'].map((level) =>
  [level, (message) => console.error(`${level}: ${message}`)]))

async function call (path, functionName, flags) {
  if (flags.input !== undefined && flags.stdin) throw new UsageError('--input and --stdin cannot be combined')
  const source = sourceOf(path, flags)
  const options = optionsOf(source, flags)
  const functions = flags.functions && await loadFunctions(flags.functions)
  const store = flags.store === undefined ? undefined : await openStore(flags.store)
  let plugin
  try {
    plugin = await createPlugin(source, {
      ...options,
      functions,
      enableWasiOutput: flags.wasi,
      logger: toStandardError,
      store: store && { store, ...permissionsOf(flags) }
    })
    const input = flags.stdin ? await buffer(process.stdin) : flags.input
    for (let times = 0; times < flags.loop; times++) {
      const output = await plugin.call(functionName, input)
      if (output !== null) process.stdout.write(output.bytes())
    }
  } finally {
    await plugin?.close()
    await store?.close()
  }
}

module.exports = { call }
