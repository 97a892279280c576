'use strict'

// Applies a changed configuration to an app that serves.

const { createSecureContext } = require('node:tls')
const { isDeepStrictEqual } = require('node:util')
const { UsageError } = require('./usage-error.js')

const keysOf = (...objects) => [...new Set(objects.flatMap((object) => Object.keys(object)))]
const differing = (before, after) => keysOf(before, after).filter((key) => !isDeepStrictEqual(before[key], after[key]))

/** The files that a plugin is loaded from. */
const filesOf = ({ source, functions }) => [...(source.wasm ?? []).map(({ path }) => path), functions].filter((file) => file !== undefined)

/** The app's definitions of plugins of the configuration; `null` of those that are not there. */
async function definitionsOf (plugins, define, names = Object.keys(plugins)) {
  const definition = async (name) => [name, Object.hasOwn(plugins, name) ? await define(plugins[name]) : null]
  return Object.fromEntries(await Promise.all(names.map(definition)))
}

/** Only the contents of certificates can change while the server listens, not whether there are any. */
function hasOtherCertificate ({ server: { tls: before } }, { server: { tls: after } }) {
  return before !== undefined && after !== undefined && !isDeepStrictEqual(before, after)
}

/** The changed settings that only a restart applies. */
function needingRestart (before, after) {
  const server = differing(before.server, after.server).filter((key) => key !== 'tls' || !hasOtherCertificate(before, after))
  const others = differing(before, after).filter((key) => key !== 'server' && key !== 'plugins')
  return [...server.map((key) => `server.${key}`), ...others]
}

class LiveConfiguration {
  #app
  #current
  #read
  #define
  #begin
  #last = new Promise((resolve) => { this.#begin = resolve })

  /** `read` reads the configuration again; `onUpdate` is called when that has been applied. */
  constructor (current, read) {
    this.#current = current
    this.#read = read
    this.onUpdate = () => {}
  }

  /** Changes wait until the app serves. `define` makes the app's definition of a plugin of the configuration. */
  begin (app, define) {
    this.#app = app
    this.#define = define
    this.#begin()
  }

  /** The files that plugins are loaded from. */
  get files () {
    return Object.values(this.#current.plugins).flatMap(filesOf)
  }

  /** Reads the configuration again and applies it. Changes follow one another. */
  update () {
    return this.#enqueue(() => this.#update())
  }

  /** Reads the configuration again, applies it, and loads its plugins again. */
  reload () {
    return this.#enqueue(async () => {
      const { isRefused, changed } = await this.#update()
      if (!isRefused) await this.#load(Object.keys(this.#current.plugins).filter((name) => !changed.includes(name)))
    })
  }

  /** Loads the plugins of a file again. */
  reloadFile (file) {
    return this.#enqueue(() => this.#load(Object.entries(this.#current.plugins)
      .filter(([, plugin]) => filesOf(plugin).includes(file)).map(([name]) => name)))
  }

  warn (message) {
    return this.#enqueue(() => this.#app.log.warn(`${message}; what was loaded stays`))
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
        const how = !Object.hasOwn(next.plugins, name) ? 'removed' : Object.hasOwn(this.#current.plugins, name) ? 'changed' : 'added'
        log.info({ plugin: name }, `plugin "${name}" has been ${how}`)
      }
      this.#current = next
      this.onUpdate()
      return { isRefused: false, changed }
    } catch (error) {
      log.error({ code: error.code }, `the configuration stays as it is, as the new one was refused: ${error.message}`)
      return { isRefused: true, changed: [] }
    }
  }

  async #apply (next, changed) {
    const settings = needingRestart(this.#current, next)
    if (settings.length > 0) throw new UsageError(`only a restart changes ${settings.join(', ')}`)
    const hasNewCertificate = hasOtherCertificate(this.#current, next)
    // Throws if the certificate and the key do not belong together, before anything has changed.
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
        log.info({ plugin: name }, `plugin "${name}" has been loaded again`)
      } catch (error) {
        log.error({ plugin: name, code: error.code }, `plugin "${name}" stays as it is, as the new version was refused: ${error.message}`)
      }
    }
  }
}

module.exports = { definitionsOf, LiveConfiguration }
