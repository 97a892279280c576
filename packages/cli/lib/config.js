'use strict'

// Reads the configuration file of `serve`. Error messages name the line.

const { readFileSync } = require('node:fs')
const { dirname, resolve } = require('node:path')
const Ajv = require('ajv')
const { LineCounter, isScalar, parseDocument, visit } = require('yaml')
const { STORE_START_MS } = require('extism-host/internal')
const schema = require('./config.schema.json')
const { readSchema } = require('./plugin-schema.js')
const { UsageError } = require('./usage-error.js')

const DEFAULT_SERVER = {
  port: 7070,
  host: '127.0.0.1',
  logLevel: 'info',
  bodyLimit: 1_048_576,
  requestTimeoutMs: 30_000,
  connectionTimeoutMs: 60_000,
  keepAliveTimeoutMs: 72_000,
  drainMs: 1_000,
  shutdownTimeoutMs: 10_000,
  trustProxy: false
}

const validate = new Ajv({ allErrors: true, verbose: true, allowUnionTypes: true }).compile(schema)

/** The Levenshtein distance between two words. */
function editDistance (from, to) {
  let row = Array.from({ length: to.length + 1 }, (_, index) => index)
  for (let i = 1; i <= from.length; i++) {
    const next = [i]
    for (let j = 1; j <= to.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (from[i - 1] === to[j - 1] ? 0 : 1))
    }
    row = next
  }
  return row[to.length]
}

/** Suggests the nearest known word, or lists all if none is near. */
function suggestion (word, known) {
  const [best] = known.map((one) => [editDistance(word.toLowerCase(), one.toLowerCase()), one]).sort(([a], [b]) => a - b)
  return best !== undefined && best[0] <= Math.max(2, word.length / 3) ? `; did you mean "${best[1]}"?` : `; there are ${known.join(', ')}`
}

/** Turns an error of the schema into a message. */
function explain ({ keyword, params, message, parentSchema }) {
  switch (keyword) {
    case 'additionalProperties':
      return `there is no "${params.additionalProperty}"${suggestion(params.additionalProperty, Object.keys(parentSchema.properties))}`
    case 'required': return `"${params.missingProperty}" is missing`
    case 'enum': return `it must be one of ${params.allowedValues.join(', ')}`
    default: return `it ${message}`
  }
}

const pathOf = ({ instancePath }) => instancePath.split('/').slice(1).map((part) => decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~'))

/** Replaces `${NAME}` by environment variables in all strings. */
function replaceVariables (document, environment, fail) {
  visit(document, {
    Scalar (key, node) {
      if (key === 'key' || typeof node.value !== 'string') return
      node.value = node.value.replace(/\$\{(\w+)\}/g, (_, name) => {
        if (!Object.hasOwn(environment, name)) fail(node, `the environment variable ${name} is not set`)
        return environment[name]
      })
    }
  })
}

function read (path, what) {
  try {
    return readFileSync(path)
  } catch (error) {
    throw new UsageError(`cannot read ${what} from ${path}: ${error.code}`)
  }
}

/** Converts a document to an object; `yaml` fails if its aliases expand too far. */
function asObject (document, fail) {
  try {
    return document.toJS()
  } catch (error) {
    return fail(undefined, error.message)
  }
}

/** Reads a configuration, resolves its paths, and adds defaults. */
function readConfig (file, environment = process.env) {
  const text = String(read(file, 'the configuration'))
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false })
  const at = (node) => node?.range === undefined || node.range === null ? file : `${file}:${lines.linePos(node.range[0]).line}`
  const fail = (node, message) => { throw new UsageError(`${at(node)}: ${message}`) }

  if (document.errors.length > 0) {
    const [{ pos, message }] = document.errors
    throw new UsageError(`${file}:${lines.linePos(pos[0]).line}: ${message}`)
  }
  replaceVariables(document, environment, fail)
  const config = asObject(document, fail) ?? {}
  if (!validate(config)) {
    // `anyOf` reports the errors of all alternatives; the most deeply nested one is the most specific.
    const errors = validate.errors.filter(({ keyword }) => keyword !== 'anyOf')
    const error = errors.sort((a, b) => pathOf(b).length - pathOf(a).length)[0]
    const path = pathOf(error)
    const unknown = error.params.additionalProperty
    const parent = document.getIn(path, true)
    const key = unknown === undefined ? undefined : parent?.items?.find((pair) => isScalar(pair.key) && pair.key.value === unknown)?.key
    const where = path.length === 0 ? '' : `${path.join('.')}: `
    fail(key ?? parent, `${where}${explain(error)}`)
  }
  return withDefaults(config, (path) => resolve(dirname(file), path))
}

/** Converts a plugin's modules and its hash to a manifest. */
function asSource (name, { wasm, hash }, absolute) {
  if (hash !== undefined && typeof wasm !== 'string') {
    throw new UsageError(`plugins.${name}: "hash" is that of one module; move it into the modules of "wasm"`)
  }
  const modules = typeof wasm === 'string' ? [/^https?:/.test(wasm) ? { url: wasm } : { path: wasm }] : wasm
  return {
    wasm: modules.map(({ path, ...module }) => ({
      ...(path === undefined ? {} : { path: absolute(path) }),
      ...module,
      ...(hash === undefined ? {} : { hash })
    }))
  }
}

/** Converts a configured plugin to its source, options of createPlugin, and what the server itself uses. */
function asPlugin (name, { wasm, hash, wasi, functions, schema, allowedPaths, compileCache, store, ...options }, absolute) {
  const plugin = {
    ...options,
    source: asSource(name, { wasm, hash }, absolute),
    useWasi: wasi === undefined ? undefined : Boolean(wasi),
    wasi: typeof wasi === 'object' ? wasi : undefined,
    functions: functions && absolute(functions),
    schema: schema && readSchema(absolute(schema)),
    allowedPaths: allowedPaths?.map((path) => ({ ...path, host: absolute(path.host) })),
    compileCache: compileCache?.directory === undefined ? compileCache : { ...compileCache, directory: absolute(compileCache.directory) },
    permissions: store
  }
  return Object.fromEntries(Object.entries(plugin).filter(([, value]) => value !== undefined))
}

function asAdmin ({ uploads, ...admin }, absolute) {
  return uploads === undefined ? admin : { ...admin, uploads: { ...uploads, directory: absolute(uploads.directory) } }
}

/** Reads the authorities of a connection, which each client expects elsewhere. */
function asConnection (name, { ca, ...connection }, absolute) {
  if (ca === undefined) return connection
  const pem = String(read(absolute(ca), `connections.${name}.ca`))
  if (connection.nats !== undefined) return { ...connection, tls: { ca: pem } }
  if (connection.postgres !== undefined) return { ...connection, ssl: { ca: pem } }
  return connection.redis === undefined ? { ...connection, ca: pem } : { ...connection, socket: { tls: true, ca: pem } }
}

/** Converts a valid configuration for `serve`. */
function withDefaults ({ server, store = 'memory:', plugins, admin, connections, ...rest }, absolute) {
  const { url, ca, startTimeoutMs = STORE_START_MS, ...storeOptions } = typeof store === 'string' ? { url: store } : store
  const { tls, ...others } = server ?? {}
  return {
    server: {
      ...DEFAULT_SERVER,
      ...others,
      tls: tls === undefined ? undefined : { cert: read(absolute(tls.cert), 'server.tls.cert'), key: read(absolute(tls.key), 'server.tls.key') }
    },
    store: { url, startTimeoutMs, options: ca === undefined ? storeOptions : { ...storeOptions, ca: read(absolute(ca), 'store.ca') } },
    plugins: Object.fromEntries(Object.entries(plugins).map(([name, plugin]) => [name, asPlugin(name, plugin, absolute)])),
    ...(admin === undefined ? {} : { admin: asAdmin(admin, absolute) }),
    ...(connections === undefined ? {} : { connections: Object.fromEntries(Object.entries(connections).map(([name, connection]) => [name, asConnection(name, connection, absolute)])) }),
    ...rest
  }
}

module.exports = { DEFAULT_SERVER, readConfig }
