'use strict'

const { onHangup } = require('./hangup.js')
const { resolve } = require('node:path')
const closeWithGrace = require('close-with-grace')
const Fastify = require('fastify')
const { closeWithoutLoss, LogOutput, openStoreInTime } = require('extism-host/internal')
const extismHost = require('@extism-host/fastify')
const { DEFAULT_SERVER, readConfig } = require('./config.js')
const { FileWatcher } = require('./file-watcher.js')
const { LiveConfiguration } = require('./live-configuration.js')
const { whenNpxIsGone } = require('./parent.js')
const { UsageError } = require('./usage-error.js')

/** How long answers have to be written after their calls have been interrupted. */
const FLUSH_MS = 5_000

/** The configuration of one function at `POST /`. */
function ofOneFunction (wasm, functionName) {
  const isUrl = /^https?:/.test(wasm)
  return {
    server: DEFAULT_SERVER,
    store: { url: 'memory:', startTimeoutMs: 0, options: {} },
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

function createApp (server) {
  return Fastify({
    logger: { level: server.logLevel, stream: new LogOutput() },
    bodyLimit: server.bodyLimit,
    requestTimeout: server.requestTimeoutMs,
    connectionTimeout: server.connectionTimeoutMs,
    keepAliveTimeout: server.keepAliveTimeoutMs,
    trustProxy: server.trustProxy,
    return503OnClosing: false,
    ...(server.tls === undefined ? {} : { https: server.tls })
  })
}

/** Opens the store and the plugins, which the app closes; returns what makes definitions of configured plugins. */
async function openPlugins (app, { server, store: storeConfiguration, plugins, ...rest }) {
  const { url, options, startTimeoutMs } = storeConfiguration
  const store = await openStoreInTime(url, options, startTimeoutMs, app.log)
  // Hooks of this kind run in the opposite order: the plugins are closed before their store.
  app.addHook('onClose', () => store.close())
  const define = ({ permissions, ...plugin }) => ({ ...plugin, store: { store, ...permissions } })
  const definitions = Object.entries(plugins).map(([name, plugin]) => [name, define(plugin)])
  app.register(extismHost, { ...rest, store, plugins: Object.fromEntries(definitions) })
  await app.ready()
  return define
}

/** Loads plugins and the configuration again when their files change; returns what ends that. */
function watchFiles (live, configurationFile) {
  const ownFiles = configurationFile === undefined ? [] : [configurationFile]
  const watcher = new FileWatcher((file) => file === configurationFile ? live.update() : live.reloadFile(file), (file) => live.warn(`${file} is missing`))
  live.onUpdate = () => watcher.watch([...ownFiles, ...live.files])
  live.onUpdate()
  return () => watcher.close()
}

async function serve (plugin, functionName, flags) {
  const read = () => asConfiguration(plugin, functionName, flags)
  const configuration = read()
  const { server } = configuration
  const live = new LiveConfiguration(configuration, read)
  onHangup(() => live.reload())
  const app = createApp(server)
  const drain = closeWithoutLoss(app)
  const stopWatching = flags.watch ? watchFiles(live, flags.config && resolve(flags.config)) : () => {}
  let isServing = false
  const delay = server.drainMs + server.shutdownTimeoutMs + FLUSH_MS
  const grace = closeWithGrace({ delay, logger: app.log, skip: ['SIGHUP'] }, async ({ err }) => {
    if (err) app.log.error(err)
    // What is still starting has nothing to lose, and may take long.
    if (!isServing) return
    stopWatching()
    if (!err) {
      app.extism.drain()
      await drain(server.drainMs)
    }
    // Before the app is closed: that begins by waiting for the answers.
    app.extism.endCallsAfter(server.shutdownTimeoutMs)
    await app.close()
  })
  try {
    const define = await openPlugins(app, configuration)
    await app.listen({ port: server.port, host: server.host })
    isServing = true
    live.begin(app, define)
    whenNpxIsGone(() => grace.close())
  } catch (error) {
    grace.uninstall()
    stopWatching()
    await app.close()
    throw error
  }
}

module.exports = { serve }
