'use strict'

// `config check`: what `serve` would refuse, found without opening a store or running a plugin.

const { readFile } = require('node:fs/promises')
const { readConfig } = require('./config.js')
const { interfaceOf } = require('./module-interface.js')
const { UsageError } = require('./usage-error.js')

async function read (what, path) {
  try {
    return await readFile(path)
  } catch (error) {
    throw new UsageError(`${what}: cannot read ${path}: ${error.code}`)
  }
}

/** The functions that a module exports; `undefined` for a module on the network, which is not fetched. */
async function functionsOf (what, { path }) {
  if (path === undefined) return undefined
  const bytes = await read(what, path)
  try {
    await WebAssembly.compile(bytes)
    return interfaceOf(bytes).exports.filter(({ kind }) => kind === 'function').map(({ name }) => name)
  } catch (error) {
    throw new UsageError(`${what}: ${path} is not a WebAssembly module: ${error.message}`)
  }
}

/** The functions of a plugin, those of its main module. */
async function pluginFunctions (name, { source: { wasm } }) {
  const all = await Promise.all(wasm.map((module) => functionsOf(`plugins.${name}`, module)))
  const main = wasm.findIndex((module) => module.name === 'main')
  return all.at(main)
}

function checkCall (what, plugin, functionName, functions) {
  if (!functions.has(plugin)) throw new UsageError(`${what}: there is no plugin "${plugin}"; there are ${[...functions.keys()].join(', ')}`)
  const known = functions.get(plugin)
  if (known !== undefined && !known.includes(functionName)) {
    throw new UsageError(`${what}: plugin "${plugin}" has no function "${functionName}"; it has ${known.join(', ')}`)
  }
}

/** As in the Fastify plugin, a trigger may leave out the name of the only connection to such a broker. */
function checkConnection (what, { mqtt, connection }, connections) {
  const kind = mqtt === undefined ? 'nats' : 'mqtt'
  const suitable = Object.keys(connections).filter((name) => connections[name][kind] !== undefined)
  if (suitable.length === 0) throw new UsageError(`${what}: there is no connection to ${kind}; add one to "connections"`)
  if (connection === undefined ? suitable.length > 1 : !suitable.includes(connection)) {
    throw new UsageError(`${what}: "connection" must name a connection to ${kind}: ${suitable.join(', ')}`)
  }
}

/** Whether the connections that a plugin may use are configured. */
function checkConnect (what, connect, connections) {
  for (const [name, { connection = name }] of Object.entries(connect)) {
    if (Object.hasOwn(connections, connection)) continue
    const known = Object.keys(connections)
    throw new UsageError(`${what}.${name}: there is no connection "${connection}"; there ${known.length === 0 ? 'is none' : `are ${known.join(', ')}`}`)
  }
}

async function check (file) {
  const { plugins, routes = [], triggers = [], connections = {} } = readConfig(file)
  const functions = new Map()
  for (const [name, plugin] of Object.entries(plugins)) {
    functions.set(name, await pluginFunctions(name, plugin))
    if (plugin.functions !== undefined) await read(`plugins.${name}`, plugin.functions)
    if (plugin.connect !== undefined) checkConnect(`plugins.${name}.connect`, plugin.connect, connections)
    if (plugin.smoke !== undefined) checkCall(`plugins.${name}.smoke`, name, plugin.smoke.function, functions)
  }
  for (const [index, { plugin, function: functionName }] of routes.entries()) checkCall(`routes.${index}`, plugin, functionName, functions)
  for (const [index, trigger] of triggers.entries()) {
    checkCall(`triggers.${index}`, trigger.plugin, trigger.function, functions)
    checkConnection(`triggers.${index}`, trigger, connections)
  }
  const counts = [count(plugins, 'plugin'), count(routes, 'route'), ...(triggers.length === 0 ? [] : [count(triggers, 'trigger')])]
  console.log(`${file} is valid: ${counts.join(', ')}`)
}

function count (list, what) {
  const { length } = Object.keys(list)
  return `${length} ${what}${length === 1 ? '' : 's'}`
}

module.exports = { check }
