'use strict'

// Checks the options of the registration.

const { resolve } = require('node:path')
const { Plugin } = require('extism-host')
const { asBytes, asInteger, asOneOf, asStore, describe, encodingOf, functionsOf, invalidArgument, isObject, LEVELS, MAX_TIMER_MS, MAX_U32, pick, SILENT, toJsonSchema } = require('extism-host/internal')
const { asConnect, asConnections } = require('./connections.js')
const { asTriggers } = require('./triggers.js')
const { Uploads } = require('./uploads.js')

const keys = (...names) => Object.fromEntries(names.map((name) => [name, name]))
// `prefix` and `logLevel` are Fastify's own: those of `register`.
const KEYS = keys('plugins', 'routes', 'connections', 'triggers', 'store', 'health', 'metrics', 'admin', 'docs', 'closeTimeoutMs', 'prefix', 'logLevel')
/** Fastify itself checks those from `schema` on. */
const ROUTE_KEYS = keys('method', 'url', 'plugin', 'function', 'mode', 'contentType', 'timeoutMs', 'errors', 'bodyLimit', 'schema',
  'attachValidation', 'childLoggerFactory', 'config', 'constraints', 'errorHandler', 'exposeHeadRoute', 'handlerTimeout', 'logLevel', 'logSerializers',
  'prefixTrailingSlash', 'schemaErrorFormatter', 'serializerCompiler', 'validatorCompiler', 'onError', 'onRequest', 'onRequestAbort', 'onResponse', 'onSend',
  'onTimeout', 'preHandler', 'preParsing', 'preSerialization', 'preValidation')
const ERROR_KEYS = keys('PLUGIN_ERROR')
const SMOKE_KEYS = keys('function', 'input', 'expect', 'timeoutMs')
const DEFAULT_SMOKE_MILLISECONDS = 5_000
const DEFAULT_CLOSE_TIMEOUT_MS = 10_000
const ADMIN_KEYS = keys('token', 'prefix', 'uploads')
const UPLOAD_KEYS = keys('directory', 'maxBytes')
/** A Go plugin has some MiB; a JavaScript engine in a plugin ten times as much. */
const DEFAULT_UPLOAD_BYTES = 2 ** 26
const LEAST_TOKEN_CHARACTERS = 16
const HEALTH_KEYS = keys('prefix', 'config')
const METRICS_KEYS = keys('prefix', 'config', 'register')
const DOCS_KEYS = keys('prefix', 'info')
const DEFAULT_INFO = { title: 'Plugins', version: '1.0.0' }
const CONTENT_TYPES = { json: 'application/json; charset=utf-8', text: 'text/plain; charset=utf-8' }
const MODES = ['raw', 'http']

/** Whether requests with all of these methods may have a body. */
const canHaveBody = (method) => [method].flat().every((one) => !/^(GET|HEAD)$/i.test(one))

function asName (value, what) {
  if (typeof value !== 'string' || value === '') throw invalidArgument(`${what} must be a non-empty string`)
  return value
}

function asContentType (value, what) {
  if (!/^[\x20-\x7E]+\/[\x20-\x7E]+$/.test(asName(value, what))) throw invalidArgument(`${what} must be a type such as 'text/plain; charset=utf-8'`)
  return value
}

/** The default `logLevel` of plugins: the level of the app's logger. */
function levelOf ({ level }) {
  return LEVELS.includes(level) ? level : SILENT
}

/** Checks one of `plugins`: an open Plugin (`external`), or a source with options for createPlugin. */
function asPlugin (name, value, { store, log, connections }) {
  if (value instanceof Plugin) return { name, external: value }
  const defaults = { name, store, logger: log, logLevel: levelOf(log) }
  const isManifest = isObject(value) && Object.hasOwn(value, 'wasm')
  const hasOptions = isObject(value) && Object.hasOwn(value, 'source')
  if (hasOptions && isManifest) {
    throw invalidArgument(`plugin "${name}" must be a manifest with "wasm", or an object with "source", not both`)
  }
  if (!hasOptions) {
    const isSource = typeof value?.then === 'function' || typeof value === 'string' || value instanceof URL || value instanceof Response || isManifest || asBytes(value) !== undefined
    if (!isSource) throw invalidArgument(`plugin "${name}" must be a Plugin, a source, or an object with a "source", not ${describe(value)}`)
    return { name, source: value, options: defaults }
  }
  const { source, smoke, connect, ...options } = value
  return {
    name,
    source,
    smoke: smoke && asSmoke(smoke, `the smoke of plugin "${name}"`),
    connect: connect && asConnect(connect, `plugin "${name}": connect`, connections),
    options: { ...defaults, ...options }
  }
}

function asSmoke (smoke, what) {
  const { function: functionName, input, expect, timeoutMs } = pick(smoke, SMOKE_KEYS, what)
  if (expect !== undefined && typeof expect !== 'string' && asBytes(expect) === undefined) {
    throw invalidArgument(`expect of ${what} must be a string or bytes, not ${describe(expect)}`)
  }
  return {
    functionName: asName(functionName, `the function of ${what}`),
    input,
    expect,
    timeoutMs: asInteger(timeoutMs, `timeoutMs of ${what}`, DEFAULT_SMOKE_MILLISECONDS, MAX_U32)
  }
}

function asPlugins (plugins, defaults) {
  if (!isObject(plugins) || Object.keys(plugins).length === 0) {
    throw invalidArgument('plugins must be an object of plugins by name, such as { greeter: "greeter.wasm" }')
  }
  return Object.entries(plugins).map(([name, value]) => asPlugin(name, value, defaults))
}

function asRoute (route, index, plugins) {
  const what = `routes[${index}]`
  const {
    method = 'POST', url, plugin: pluginName, function: functionName, mode = 'raw', contentType, timeoutMs, errors, bodyLimit, ...fastify
  } = pick(route, ROUTE_KEYS, what)
  const plugin = asName(pluginName, `${what}.plugin`)
  const definition = plugins.find(({ name }) => name === plugin)
  if (definition === undefined) {
    throw invalidArgument(`${what} names plugin "${plugin}", but there are only ${plugins.map(({ name }) => `"${name}"`).join(', ')}`)
  }
  const checkedMode = asOneOf(mode, MODES, `${what}.mode`)
  const name = asName(functionName, `${what}.function`)
  const described = checkedMode === 'raw' && definition.options?.schema !== undefined ? asDescribed(definition.options.schema, name, what, method) : {}
  const inputSchema = fastify.schema?.body === undefined ? described.inputSchema : undefined
  if (inputSchema !== undefined) fastify.schema = { ...fastify.schema, body: inputSchema }
  return {
    method,
    url: asName(url, `${what}.url`),
    plugin,
    functionName: name,
    mode: checkedMode,
    contentType: contentType === undefined ? described.contentType : asContentType(contentType, `${what}.contentType`),
    inputSchema,
    outputSchema: described.outputSchema,
    timeoutMs: asInteger(timeoutMs, `${what}.timeoutMs`, undefined, MAX_U32),
    errors: errors === undefined ? {} : asErrors(errors, `${what}.errors`),
    bodyLimit: asInteger(bodyLimit, `${what}.bodyLimit`, undefined, Number.MAX_SAFE_INTEGER),
    fastify
  }
}

/** The parts of a plugin's schema for a route: the schema of a JSON body, and the content type and schema of the output. */
function asDescribed (schema, functionName, what, method) {
  const described = functionsOf(schema).get(functionName)
  if (described === undefined) throw invalidArgument(`${what} calls "${functionName}", which the schema of its plugin does not have`)
  const { input, output } = described
  const outputEncoding = encodingOf(schema, output)
  return {
    inputSchema: encodingOf(schema, input) === 'json' && canHaveBody(method) ? toJsonSchema(schema, input) : undefined,
    contentType: CONTENT_TYPES[outputEncoding],
    outputSchema: outputEncoding === 'json' ? toJsonSchema(schema, output) : undefined
  }
}

/** The status of each code whose message clients may see: only a plugin's own messages are written for others. */
function asErrors (errors, what) {
  const { PLUGIN_ERROR: status } = pick(errors, ERROR_KEYS, what)
  return { PLUGIN_ERROR: asInteger(status, `${what}.PLUGIN_ERROR`, undefined, 599, 400) }
}

function asRoutes (routes, plugins) {
  if (!Array.isArray(routes)) throw invalidArgument(`routes must be an array, not ${describe(routes)}`)
  return routes.map((route, index) => asRoute(route, index, plugins))
}

function asPrefix (prefix, name) {
  if (typeof prefix !== 'string' || !/^\/.*[^/]$/.test(prefix)) {
    throw invalidArgument(`${name}.prefix must be a path that begins with "/" and does not end with it`)
  }
  return prefix
}

function asHealth (option = false) {
  if (option === false) return undefined
  const { prefix = '/health', config } = pick(option === true ? {} : option, HEALTH_KEYS, 'health')
  return { prefix: asPrefix(prefix, 'health'), config }
}

/** Without a prefix there is no route, because an app that passes a registry serves it itself. */
function asMetrics (option = false) {
  if (option === false) return undefined
  const { register, prefix = register === undefined ? '/metrics' : undefined, config } = pick(option === true ? {} : option, METRICS_KEYS, 'metrics')
  if (register !== undefined && typeof register.registerMetric !== 'function') {
    throw invalidArgument(`metrics.register must be a Registry of prom-client, not ${describe(register)}`)
  }
  return { prefix: prefix === undefined ? undefined : asPrefix(prefix, 'metrics'), config, register }
}

function asDocs (option = false, appPrefix = '') {
  if (option === false) return undefined
  const { prefix = '/docs', info } = pick(option === true ? {} : option, DOCS_KEYS, 'docs')
  if (info !== undefined && !isObject(info)) throw invalidArgument(`docs.info must be an object such as { title, version }, not ${describe(info)}`)
  return { prefix: appPrefix + asPrefix(prefix, 'docs'), info: { ...DEFAULT_INFO, ...info } }
}

function asAdmin (option) {
  if (option === undefined) return undefined
  const { token, prefix = '/admin', uploads } = pick(option, ADMIN_KEYS, 'admin')
  // Only characters that a header carries unchanged, without spaces at the ends.
  if (typeof token !== 'string' || token.length < LEAST_TOKEN_CHARACTERS || !/^[\x21-\x7E](?:[\x20-\x7E]*[\x21-\x7E])?$/.test(token)) {
    throw invalidArgument(`admin.token must be a string of at least ${LEAST_TOKEN_CHARACTERS} ASCII characters that nobody can guess`)
  }
  return { token, prefix: asPrefix(prefix, 'admin'), uploads: uploads && asUploads(uploads) }
}

function asUploads (uploads) {
  const { directory, maxBytes } = pick(uploads, UPLOAD_KEYS, 'admin.uploads')
  return {
    directory: resolve(asName(directory, 'admin.uploads.directory')),
    maxBytes: asInteger(maxBytes, 'admin.uploads.maxBytes', DEFAULT_UPLOAD_BYTES, MAX_U32)
  }
}

/** The store of an option `store` of createPlugin: a store itself, or a StoreAccess with one. */
function storeOfOption (option) {
  return isObject(option) && asStore(option) === undefined ? option.store : option
}

/** The distinct stores of such options. It skips invalid ones, which `createPlugin` rejects. */
function storesOf (options) {
  const named = new Set(options.map(storeOfOption).filter((store) => store !== undefined && store !== null))
  return [...named].map(asStore).filter((store) => store !== undefined)
}

/** `log` is the app's logger. */
function asOptions (options, log) {
  const { plugins, routes: routeList = [], connections: connectionList = {}, triggers: triggerList = [], store, health, metrics, admin, docs, closeTimeoutMs, prefix } = pick(options, KEYS, 'extism-host/fastify')
  const connections = asConnections(connectionList)
  const list = asPlugins(plugins, { store, log, connections })
  const routes = asRoutes(routeList, list)
  const triggers = asTriggers(triggerList, connections, list)
  const functionsOf = (name) => [...routes, ...triggers].filter(({ plugin }) => plugin === name).map(({ functionName }) => functionName)
  const checkedAdmin = asAdmin(admin)
  const uploads = checkedAdmin?.uploads && new Uploads(checkedAdmin.uploads.directory)
  return {
    definitions: list.map((one) => ({ ...one, functions: new Set(functionsOf(one.name)), uploads })),
    routes,
    connections,
    triggers,
    store: storesOf([store])[0],
    stores: storesOf([store, ...list.map(({ options }) => options?.store)]),
    health: asHealth(health),
    metrics: asMetrics(metrics),
    admin: checkedAdmin,
    docs: asDocs(docs, prefix),
    closeTimeoutMs: asInteger(closeTimeoutMs, 'closeTimeoutMs', DEFAULT_CLOSE_TIMEOUT_MS, MAX_TIMER_MS, 0),
    prefix
  }
}

module.exports = { asOptions, canHaveBody }
