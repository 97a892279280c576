'use strict'

// Applies changes of the configuration to a running app.

const { createSecureContext } = require('node:tls')
const { isDeepStrictEqual } = require('node:util')
const { UsageError } = require('./usage-error.js')

const keysOf = (...objects) => [...new Set(objects.flatMap((object) => Object.keys(object)))]
const differing = (before, after) => keysOf(before, after).filter((key) => !isDeepStrictEqual(before[key], after[key]))

/** The files that a plugin is loaded from. */
const filesOf = ({ source, functions }) => [...(source.wasm ?? []).map(({ path }) => path), functions].filter((file) => file !== undefined)

/** The app's definitions of configured plugins; `null` for names that are not configured. */
async function definitionsOf (plugins, define, names = Object.keys(plugins)) {
  const definition = async (name) => [name, Object.hasOwn(plugins, name) ? await define(plugins[name]) : null]
  return Object.fromEntries(await Promise.all(names.map(definition)))
}

/** Whether the certificate changed. A running server can replace its certificate, but not turn TLS on or off. */
function hasOtherCertificate ({ server: { tls: before } }, { server: { tls: after } }) {
  return before !== undefined && after !== undefined && !isDeepStrictEqual(before, after)
}

/** The changed settings that need a restart. */
function restartOnlySettings (before, after) {
  const server = differing(before.server, after.server).filter((key) => key !== 'tls' || !hasOtherCertificate(before, after))
  const others = differing(before, after).filter((key) => key !== 'server' && key !== 'plugins')
  // Routes validate by the schema that they were registered with.
  const schemas = Object.keys(before.plugins).filter((name) => Object.hasOwn(after.plugins, name) && !isDeepStrictEqual(before.plugins[name].schema, after.plugins[name].schema))
  return [...server.map((key) => `server.${key}`), ...schemas.map((name) => `plugins.${name}.schema`), ...others]
}

class LiveConfiguration {
  #app
  #current
  #read
  #define
  #start
  #last = new Promise((resolve) => { this.#start = resolve })

  /** `read` rereads the configuration. `onUpdate`, which may be replaced, is called after an update has been applied. */
  constructor (current, read) {
    this.#current = current
    this.#read = read
    this.onUpdate = () => {}
  }

  /** Starts applying changes, which are queued until then. `define` converts a configured plugin to its definition for the app. */
  start (app, define) {
    this.#app = app
    this.#define = define
    this.#start()
  }

  /** The files that plugins are loaded from. */
  get files () {
    return Object.values(this.#current.plugins).flatMap(filesOf)
  }

  /** Rereads and applies the configuration. Changes run one after the other. */
  update () {
    return this.#enqueue(() => this.#update())
  }

  /** Rereads and applies the configuration, and reloads all plugins. */
  reload () {
    return this.#enqueue(async () => {
      const { isRefused, changed } = await this.#update()
      if (!isRefused) await this.#load(Object.keys(this.#current.plugins).filter((name) => !changed.includes(name)))
    })
  }

  /** Reloads the plugins of a file. */
  reloadFile (file) {
    return this.#enqueue(() => this.#load(Object.entries(this.#current.plugins)
      .filter(([, plugin]) => filesOf(plugin).includes(file)).map(([name]) => name)))
  }

  warn (message) {
    return this.#enqueue(() => this.#app.log.warn(`${message}; the loaded version keeps serving`))
  }

  #enqueue (work) {
    this.#last = this.#last.then(work)
    return this.#last
  }

  async #update () {
    const { log } = this.#app
    try {
      const next = this.#read()
      const changed = differing(this.#current.plugins, next.plugins)
      await this.#apply(next, changed)
      for (const name of changed) {
        const change = !Object.hasOwn(next.plugins, name) ? 'removed' : Object.hasOwn(this.#current.plugins, name) ? 'changed' : 'added'
        log.info({ plugin: name }, `plugin "${name}" has been ${change}`)
      }
      this.#current = next
      this.onUpdate()
      return { isRefused: false, changed }
    } catch (error) {
      log.error({ code: error.code }, `rejected the new configuration, the old one stays in effect: ${error.message}`)
      return { isRefused: true, changed: [] }
    }
  }

  async #apply (next, changed) {
    const settings = restartOnlySettings(this.#current, next)
    if (settings.length > 0) throw new UsageError(`changing ${settings.join(', ')} needs a restart`)
    const hasNewCertificate = hasOtherCertificate(this.#current, next)
    // Throws if the certificate and the key do not match, before anything has changed.
    if (hasNewCertificate) createSecureContext(next.server.tls)
    if (changed.length > 0) {
      await this.#app.extism.update(await definitionsOf(next.plugins, this.#define, changed))
    }
    if (hasNewCertificate) {
      this.#app.server.setSecureContext(next.server.tls)
      this.#app.log.info('the certificate has been changed')
    }
  }

  async #load (names) {
    const { extism, log } = this.#app
    for (const name of names) {
      try {
        // A reload would go on with the host functions that there are.
        if (this.#current.plugins[name].functions === undefined) await extism.reload(name)
        else await extism.update(await definitionsOf(this.#current.plugins, this.#define, [name]))
        log.info({ plugin: name }, `plugin "${name}" has been reloaded`)
      } catch (error) {
        log.error({ plugin: name, code: error.code }, `rejected the new version of plugin "${name}", the old one keeps serving: ${error.message}`)
      }
    }
  }
}

module.exports = { definitionsOf, filesOf, LiveConfiguration }
