'use strict'

// Runs a plugin while somebody writes it: builds it, serves it on loopback with a page, and loads it again when a file changes.

const { statSync } = require('node:fs')
const { relative } = require('node:path')
const closeWithGrace = require('close-with-grace')
const { openStore } = require('extism-host')
const { createApp } = require('./dev/app.js')
const { buildOnChange } = require('./dev/build.js')
const { DevPlugin } = require('./dev/dev-plugin.js')
const { FileWatcher } = require('./file-watcher.js')
const { onNpxExit } = require('./parent.js')
const { printable } = require('./printable.js')

/** The only address: the page runs whatever it is sent, so no other machine may reach it. */
const HOST = '127.0.0.1'
const DEFAULT_PORT = 7070
const CLOSE_MS = 5_000

const isDirectory = (path) => statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false

/** Text of several lines that cannot do anything to a terminal. */
const printableLines = (text) => text.split('\n').map(printable).join('\n')

/** Prints what happens to the plugin. The messages of guests and compilers go to standard error. */
function printEvents (plugin) {
  plugin.on('log', ({ level, message }) => console.error(printableLines(`${level}: ${message}`)))
  plugin.on('call', ({ function: name, durationMs, error }) => {
    console.log(printable(`${name}: ${error === undefined ? 'OK' : error.code ?? 'error'} in ${durationMs} ms`))
    if (error !== undefined) console.error(printableLines([error.message, ...error.backtrace.map((frame) => `    at ${frame}`)].join('\n')))
  })
  plugin.on('loaded', ({ version, functions }) => console.log(printable(`Loaded version ${version}: ${functions.join(', ') || 'it has no functions to call'}`)))
  plugin.on('refused', ({ code, message }) => console.error(printableLines(`extism-host: ${code === undefined ? '' : `${code}: `}${message}`)))
}

async function dev (location, flags) {
  const directory = isDirectory(location) ? location : '.'
  const store = flags.store === undefined ? undefined : await openStore(flags.store)
  const plugin = new DevPlugin(location, flags, store)
  printEvents(plugin)
  const app = createApp(plugin, flags)
  // A build that runs may have written half of a file. Its end loads the plugin.
  const watcher = new FileWatcher(() => { if (!plugin.state.build.isRunning) plugin.load() }, () => {})
  plugin.on('state', () => watcher.watch(plugin.files))
  const stop = new AbortController()
  let building = Promise.resolve()
  const close = async () => {
    stop.abort()
    watcher.close()
    await building
    await app.close()
    await plugin.close()
    await store?.close()
  }
  const grace = closeWithGrace({ delay: CLOSE_MS, logger: false }, async ({ err }) => {
    if (err) console.error(err)
    await close()
  })
  onNpxExit(() => grace.close())
  try {
    if (flags.build === undefined) await plugin.load()
    await app.listen({ host: HOST, port: flags.port ?? DEFAULT_PORT })
  } catch (error) {
    grace.uninstall()
    await close()
    throw error
  }
  console.log(`Open http://${HOST}:${app.server.address().port}/_dev`)
  if (flags.build === undefined) return
  building = buildOnChange(flags.build, directory, {
    signal: stop.signal,
    onStart: () => {
      console.log(`Building in ${relative('', directory) || '.'}: ${flags.build}`)
      plugin.setBuild({ isRunning: true })
    },
    onEnd: async ({ reason, output }) => {
      if (reason !== undefined) console.error(`extism-host: the build failed: ${reason}`)
      plugin.setBuild({ isRunning: false, reason, output })
      if (reason === undefined) await plugin.load()
    }
  })
}

module.exports = { dev }
