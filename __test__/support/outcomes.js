'use strict'

/** What a plugin does on a runtime, to compare both. */

const { createPlugin, MemoryStore } = require('../..')

const TIMEOUT_MS = 400

const INPUTS = {
  nothing: undefined,
  text: 'key 💜',
  'a number': '7',
  '100 KB': Buffer.alloc(100_000, 'extism '),
  'bytes that are not UTF-8': Buffer.from([0xFF, 0xC0, 0x00, 0x80])
}

async function outcome (call) {
  try {
    const output = await call
    return { output: output === null ? '' : Buffer.from(output.bytes()).toString('latin1') }
  } catch ({ code, message }) {
    // Only the plugin's own messages have to be the same.
    return code === 'PLUGIN_ERROR' ? { code, message } : { code }
  }
}

/**
 * The outcome of opening a plugin, and of each call of its functions with each input, as `name/function(input)`.
 * Functions in `skip` are not called. `options` are those of `createPlugin`.
 */
async function outcomes (name, source, runtime, { skip = [], ...options } = {}) {
  const store = new MemoryStore([['key 💜', 'value'], ['7', '7']])
  let plugin
  try {
    plugin = await createPlugin(source, {
      runtime,
      store: { store, access: 'write' },
      useWasi: true,
      config: { 'key 💜': 'configured' },
      timeoutMs: TIMEOUT_MS,
      memory: { maxPages: 300 },
      ...options
    })
  } catch ({ code }) {
    return { open: { code } }
  }
  const all = {}
  for (const { name: function_, kind } of await plugin.getExports()) {
    if (kind !== 'function' || skip.includes(function_) || !await plugin.functionExists(function_)) continue
    for (const [title, input] of Object.entries(INPUTS)) {
      all[`${name}/${function_}(${title})`] = await outcome(plugin.call(function_, input))
    }
  }
  all.store = [...store]
  await plugin.close()
  return all
}

module.exports = { outcomes }
