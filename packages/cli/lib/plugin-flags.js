'use strict'

// The flags that say which plugin to open, and how. They mean the same in every command.

const { readFileSync } = require('node:fs')
const { InvalidArgumentError, Option } = require('commander')
const { LEVELS } = require('extism-host/internal')
const { UsageError } = require('./usage-error.js')

function number (text) {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError('It must be a whole number.')
  return Number(text)
}

const collect = (value, values = []) => [...values, value]

/** Adds the flags that change what is compiled. */
function addCompileFlags (command) {
  return command
    .option('--wasi', 'let the plugin import WASI, and write its standard output')
    .option('--memory-max <pages>', 'limit the growth of its memory to this many pages of 64 KiB', number)
    .option('-m, --manifest', 'read the file as a manifest; implied for .json files')
    .option('--link <name=file>', 'link another module, which the plugin imports under this name; may be repeated', collect)
}

/** Adds all flags of a plugin that runs. */
function addPluginFlags (command) {
  return addCompileFlags(command)
    .option('--functions <file>', 'load host functions from a JavaScript module, by namespace and name')
    .option('--plugin-config <key=value>', 'set a value of the configuration that the plugin reads; may be repeated', collect)
    .option('--set-config <json>', 'set such values from JSON; --plugin-config overrides them')
    .option('--allow-host <host>', 'let it send requests to this host, * for any part of a name; may be repeated', collect)
    .option('--allow-http-response-headers', 'let it read the headers of responses')
    .option('--allow-path <directory[:guest]>', 'let it use this directory, with ro: before it for reading only; may be repeated', collect)
    .option('--timeout <ms>', 'limit the time of a call', number)
    .option('--open-timeout <ms>', 'limit the time for opening the plugin', number)
    .option('--memory-http-max <bytes>', 'limit the size of a response', number)
    .option('--memory-var-max <bytes>', 'limit the size of its variables together', number)
    .addOption(new Option('--log-level <level>', 'write messages of this level and above').choices(LEVELS))
    .option('--store <url>', 'let it read this store, a URL as openStore takes it')
    .option('--store-write', 'let it change the store')
}

/** Refuses flags of a plugin beside a configuration file, which says how to open its plugins. */
function checkAllowedWithConfig (flags, allowed) {
  const misplaced = Object.keys(flags).find((name) => !allowed.includes(name))
  if (misplaced === undefined) return
  const flag = misplaced.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
  throw new UsageError(`--${flag} cannot go with --config: put it into the configuration file`)
}

/** Splits `key=value`. */
function asPair (text, flag) {
  const index = text.indexOf('=')
  if (index < 1) throw new UsageError(`${flag}, not "${text}"`)
  return [text.slice(0, index), text.slice(index + 1)]
}

const isUrl = (location) => /^https?:/i.test(location)

function asLinkedModule (text) {
  const [name, location] = asPair(text, '--link must be name=file')
  if (name === 'main') throw new UsageError('--link cannot name a module "main": that is the plugin itself')
  return isUrl(location) ? { name, url: location } : { name, path: location }
}

function readManifest (file) {
  const text = readFileSync(file, 'utf8')
  try {
    return JSON.parse(text)
  } catch {
    throw new UsageError(`${file} must be a manifest, but is not valid JSON`)
  }
}

/** Whether the location of a plugin is a file with a manifest. */
const isManifest = (location, { manifest }) => !isUrl(location) && (manifest || /\.json$/i.test(location))

/** The source for createPlugin: a manifest, or the URL of a manifest or a module. */
function sourceOf (location, { manifest, link = [] }) {
  if (isUrl(location) && link.length === 0) return location
  const source = isManifest(location, { manifest }) ? readManifest(location) : { wasm: [isUrl(location) ? { url: location } : { path: location }] }
  if (link.length === 0) return source
  if (!Array.isArray(source?.wasm)) throw new UsageError(`${location} must be a manifest with "wasm"`)
  // The plugin's own modules come last, since the last one can be the main module.
  return { ...source, wasm: [...link.map(asLinkedModule), ...source.wasm] }
}

/** The plugin's configuration: that of the manifest, of --set-config and of --plugin-config; the last one wins. */
function configOf (source, { setConfig, pluginConfig = [] }) {
  if (setConfig === undefined && pluginConfig.length === 0) return undefined
  let values
  try {
    values = JSON.parse(setConfig ?? '{}')
  } catch {
    throw new UsageError('--set-config must be valid JSON, such as {"key": "value"}')
  }
  return { ...source?.config, ...values, ...Object.fromEntries(pluginConfig.map((pair) => asPair(pair, '--plugin-config must be key=value'))) }
}

/** Parses `directory`, whose path is the same in the guest, or `directory:guest`. */
function asAllowedPaths (paths) {
  return paths?.map((path) => {
    const isReadOnly = path.startsWith('ro:')
    const [host, guest = host] = path.slice(isReadOnly ? 3 : 0).split(':')
    return { host, guest, readOnly: isReadOnly }
  })
}

/** The options of createPlugin that flags set, without host functions and the store, which have to be opened. */
function optionsOf (source, flags) {
  if (flags.storeWrite && flags.store === undefined) throw new UsageError('--store-write needs --store')
  const options = {
    useWasi: flags.wasi,
    config: configOf(source, flags),
    allowedHosts: flags.allowHost,
    allowHttpResponseHeaders: flags.allowHttpResponseHeaders,
    allowedPaths: asAllowedPaths(flags.allowPath),
    timeoutMs: flags.timeout,
    openTimeoutMs: flags.openTimeout,
    memory: { maxPages: flags.memoryMax, maxHttpResponseBytes: flags.memoryHttpMax, maxVarBytes: flags.memoryVarMax },
    logLevel: flags.logLevel
  }
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))
}

/** The plugin's permissions in the store. */
const permissionsOf = ({ storeWrite }) => ({ access: storeWrite ? 'write' : 'read' })

module.exports = { addCompileFlags, addPluginFlags, checkAllowedWithConfig, isManifest, number, optionsOf, permissionsOf, sourceOf }
