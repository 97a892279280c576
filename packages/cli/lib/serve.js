'use strict'

const { onHangup } = require('./hangup.js')
const { resolve } = require('node:path')
const closeWithGrace = require('close-with-grace')
const Fastify = require('fastify')
const { closeWithoutLoss, openStoreInTime, STORE_START_MS } = require('extism-host/internal')
const extismHost = require('@extism-host/fastify')
const { DEFAULT_SERVER, readConfig } = require('./config.js')
const { FileWatcher } = require('./file-watcher.js')
const { loadFunctions } = require('./functions.js')
const { definitionsOf, LiveConfiguration } = require('./live-configuration.js')
const { logStream } = require('./log-stream.js')
const { onNpxExit } = require('./parent.js')
const { checkAllowedWithConfig, isManifest, optionsOf, permissionsOf, sourceOf } = require('./plugin-flags.js')
const { UsageError } = require('./usage-error.js')

/** The time to send responses after their calls have been interrupted. */
const FLUSH_MS = 5_000

/** The configuration for one function at `POST /`. */
function singleFunctionConfiguration (location, functionName, flags) {
  const source = sourceOf(location, flags)
  return {
    server: { ...DEFAULT_SERVER, logLevel: flags.logLevel ?? DEFAULT_SERVER.logLevel },
    store: { url: flags.store ?? 'memory:', startTimeoutMs: STORE_START_MS, options: {} },
    plugins: {
      plugin: {
        ...optionsOf(source, flags),
        source,
        functions: flags.functions,
        enableWasiOutput: flags.wasi && 'logger',
        permissions: permissionsOf(flags)
      }
    },
    routes: [{ method: 'POST', url: '/', plugin: 'plugin', function: functionName, contentType: flags.contentType }],
    health: true,
    metrics: true
  }
}

function asConfiguration (plugin, functionName, { config, port, host, ...flags }) {
  if ((config === undefined) === (plugin === undefined)) {
    throw new UsageError('serve takes either a plugin and a function, or --config <file>')
  }
  if (plugin !== undefined && functionName === undefined) throw new UsageError('serve needs a function after the plugin')
  if (config !== undefined) checkAllowedWithConfig(flags, ['watch'])
  const configuration = config === undefined ? singleFunctionConfiguration(plugin, functionName, flags) : readConfig(config)
  const { server } = configuration
  return { ...configuration, server: { ...server, port: port ?? server.port, host: host ?? server.host } }
}

function createApp (server) {
  return Fastify({
    logger: { level: server.logLevel, stream: logStream() },
    bodyLimit: server.bodyLimit,
    requestTimeout: server.requestTimeoutMs,
    connectionTimeout: server.connectionTimeoutMs,
    keepAliveTimeout: server.keepAliveTimeoutMs,
    trustProxy: server.trustProxy,
    return503OnClosing: false,
    // Compiling a plugin for the first time may take longer than Fastify's 10 s; `openTimeoutMs` limits it.
    pluginTimeout: 0,
    ...(server.tls === undefined ? {} : { https: server.tls })
  })
}

/** Opens the store and the plugins, which the app closes. Returns the function that converts a configured plugin to its definition. */
async function openPlugins (app, { server, store: storeConfiguration, plugins, ...rest }) {
  const { url, options, startTimeoutMs } = storeConfiguration
  const store = await openStoreInTime(url, options, startTimeoutMs, app.log)
  // Fastify runs these hooks in reverse order, so the plugins close before their store.
  app.addHook('onClose', () => store.close())
  const define = async ({ permissions, functions, ...plugin }) => ({
    ...plugin,
    functions: functions && await loadFunctions(functions),
    store: { store, ...permissions }
  })
  const definitions = await definitionsOf(plugins, define)
  app.register(extismHost, { ...rest, store, plugins: definitions })
  await app.ready()
  return define
}

/** Reloads plugins and the configuration when their files change. Returns a function that stops watching. */
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
  const configurationFile = flags.config ?? (isManifest(plugin, flags) ? plugin : undefined)
  const stopWatching = flags.watch ? watchFiles(live, configurationFile && resolve(configurationFile)) : () => {}
  let isServing = false
  const delay = server.drainMs + server.shutdownTimeoutMs + FLUSH_MS
  const grace = closeWithGrace({ delay, logger: app.log, skip: ['SIGHUP'] }, async ({ err, signal }) => {
    if (err) app.log.error(err, 'shutting down after an error')
    else app.log.info({ signal }, `shutting down${signal === undefined ? '' : ` on ${signal}`}`)
    // While the server starts, there are no requests to wait for, and starting may take long.
    if (!isServing) return
    stopWatching()
    if (!err) {
      app.extism.drain()
      await drain(server.drainMs)
    }
    // Before `app.close()`, which waits for all responses first.
    app.extism.endCallsAfter(server.shutdownTimeoutMs)
    await app.close()
    app.log.info('shut down')
  })
  try {
    const define = await openPlugins(app, configuration)
    await app.listen({ port: server.port, host: server.host })
    isServing = true
    live.start(app, define)
    onNpxExit(() => grace.close())
  } catch (error) {
    grace.uninstall()
    stopWatching()
    await app.close()
    throw error
  }
}

module.exports = { serve }
