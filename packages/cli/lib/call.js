'use strict'

const { readFile } = require('node:fs/promises')
const { buffer } = require('node:stream/consumers')
const { createPlugin, openStore } = require('extism-host')
const { UsageError } = require('./usage-error.js')

/** The values of --set-config, and those of --config, which come first; nothing where there are none. */
function asConfig (json, pairs = []) {
  if (json === undefined && pairs.length === 0) return undefined
  let values = {}
  if (json !== undefined) {
    try {
      values = JSON.parse(json)
    } catch {
      throw new UsageError('--set-config must be JSON, such as {"key": "value"}')
    }
  }
  for (const pair of pairs) {
    const index = pair.indexOf('=')
    if (index < 1) throw new UsageError('--config must be key=value')
    values[pair.slice(0, index)] = pair.slice(index + 1)
  }
  return values
}

/** `directory` is what the guest calls it too; `directory:guest` gives it another name. */
function asAllowedPaths (paths) {
  return paths?.map((path) => {
    const isReadOnly = path.startsWith('ro:')
    const [host, guest = host] = path.slice(isReadOnly ? 3 : 0).split(':')
    return { host, guest, readOnly: isReadOnly }
  })
}

/** Messages of the plugin, on standard error: its output is on the other one. */
const toStandardError = Object.fromEntries(['trace', 'debug', 'info', 'warn', 'error'].map((level) =>
  [level, (message) => console.error(`${level}: ${message}`)]))

async function asSource (plugin, isManifest) {
  if (!isManifest) return plugin
  const text = await readFile(plugin, 'utf8')
  try {
    return JSON.parse(text)
  } catch {
    throw new UsageError(`${plugin} is no JSON, which --manifest says`)
  }
}

async function call (path, functionName, flags) {
  if (flags.input !== undefined && flags.stdin) throw new UsageError('--input and --stdin cannot both be the input')
  if (flags.storeWrite && flags.store === undefined) throw new UsageError('--store-write needs --store')
  const config = asConfig(flags.setConfig, flags.config)
  const store = flags.store === undefined ? undefined : await openStore(flags.store)
  let plugin
  try {
    const source = await asSource(path, flags.manifest)
    plugin = await createPlugin(source, {
      useWasi: flags.wasi,
      enableWasiOutput: flags.wasi,
      config: config && { ...source.config, ...config },
      allowedHosts: flags.allowHost,
      allowedPaths: asAllowedPaths(flags.allowPath),
      timeoutMs: flags.timeout,
      openTimeoutMs: flags.openTimeout,
      memory: { maxPages: flags.memoryMax, maxHttpResponseBytes: flags.memoryHttpMax, maxVarBytes: flags.memoryVarMax },
      logger: toStandardError,
      logLevel: flags.logLevel,
      store: store === undefined ? undefined : { store, access: flags.storeWrite ? 'write' : 'read' }
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
