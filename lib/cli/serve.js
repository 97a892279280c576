'use strict'

const { watch } = require('node:fs')
const { basename, dirname, resolve } = require('node:path')
const closeWithGrace = require('close-with-grace')
const Fastify = require('fastify')
const { closeConnectionsInTime } = require('../closing.js')
const extismHost = require('../fastify/index.js')
const { openStore } = require('../store.js')
const { DEFAULT_SERVER, readConfig } = require('./config.js')
const { UsageError } = require('./usage-error.js')

/** How long a file must be left alone before it is loaded: who writes it does so piece by piece. */
const SETTLED_MS = 200

/** The configuration of one function at `POST /`. */
function ofOneFunction (wasm, functionName) {
  const isUrl = /^https?:/.test(wasm)
  return {
    server: DEFAULT_SERVER,
    store: { url: 'memory:', options: {} },
    plugins: { plugin: { source: { wasm: [isUrl ? { url: wasm } : { path: resolve(wasm) }] }, useWasi: true } },
    routes: [{ method: 'POST', url: '/', plugin: 'plugin', function: functionName }],
    health: true,
    metrics: true
  }
}

function asConfiguration (plugin, functionName, { config, port, host }) {
  if ((config === undefined) === (plugin === undefined)) {
    throw new UsageError('serve takes a plugin and a function, or --config with a file')
  }
  if (plugin !== undefined && functionName === undefined) throw new UsageError('serve takes a function after the plugin')
  const configuration = config === undefined ? ofOneFunction(plugin, functionName) : readConfig(config)
  const { server } = configuration
  return { ...configuration, server: { ...server, port: port ?? server.port, host: host ?? server.host } }
}

/** The app, which is not listening yet. To close it closes the store. */
async function buildApp ({ server, store: { url, options }, plugins, ...rest }) {
  const app = Fastify({
    logger: { level: server.logLevel },
    bodyLimit: server.bodyLimit,
    requestTimeout: server.requestTimeoutMs,
    connectionTimeout: server.connectionTimeoutMs,
    keepAliveTimeout: server.keepAliveTimeoutMs,
    trustProxy: server.trustProxy,
    forceCloseConnections: 'idle',
    ...(server.tls === undefined ? {} : { https: server.tls })
  })
  closeConnectionsInTime(app)
  const store = await openStore(url, options)
  // Hooks of this kind run in the opposite order: the plugins are closed before their store.
  app.addHook('onClose', () => store.close())
  const definitions = Object.entries(plugins).map(([name, { permissions, ...plugin }]) => [name, { ...plugin, store: { store, ...permissions } }])
  app.register(extismHost, { ...rest, store, plugins: Object.fromEntries(definitions) })
  try {
    await app.ready()
  } catch (error) {
    await app.close()
    throw error
  }
  return app
}

/** Loads plugins again, and says what came of it. */
async function reload (app, names) {
  for (const name of names) {
    try {
      await app.extism.reload(name)
      app.log.info({ plugin: name }, `plugin "${name}" has been loaded again`)
    } catch (error) {
      app.log.error({ plugin: name, code: error.code }, `plugin "${name}" stays as it is, as the new version was refused: ${error.message}`)
    }
  }
}

/**
 * Loads a plugin again when its file has changed. Directories are watched, as files are mostly replaced. It does so until
 * what it returns is called.
 */
function watchFiles (app, plugins) {
  const watchers = Object.entries(plugins).flatMap(([name, { source: { wasm: [{ path }] } }]) => {
    if (path === undefined) return []
    let settled
    const watcher = watch(dirname(path), (_, file) => {
      // Where the system does not say which file it was, it may have been this one.
      if (file !== null && file !== basename(path)) return
      clearTimeout(settled)
      settled = setTimeout(() => reload(app, [name]), SETTLED_MS)
    })
    watcher.on('error', (error) => app.log.error(error, `${dirname(path)} cannot be watched any more`))
    return [{ close () { clearTimeout(settled); watcher.close() } }]
  })
  return () => watchers.forEach((watcher) => watcher.close())
}

async function serve (plugin, functionName, flags) {
  const configuration = asConfiguration(plugin, functionName, flags)
  const { server, plugins } = configuration
  const app = await buildApp(configuration)
  const stopWatching = flags.watch ? watchFiles(app, plugins) : () => {}
  const grace = closeWithGrace({ delay: server.shutdownTimeoutMs, logger: app.log, skip: ['SIGHUP'] }, async ({ err }) => {
    if (err) app.log.error(err)
    stopWatching()
    await app.close()
  })
  process.on('SIGHUP', () => reload(app, Object.keys(plugins)))
  try {
    await app.listen({ port: server.port, host: server.host })
  } catch (error) {
    grace.uninstall()
    stopWatching()
    await app.close()
    throw error
  }
}

module.exports = { serve }
