'use strict'

const { codedError, invalidArgument, traceReload } = require('extism-host/internal')
const { HostedPlugin, openVersion } = require('./hosted-plugin.js')

/** `fastify.extism`: the app's plugins by name. */
class Plugins {
  #byName = new Map()
  #define
  /** The current option `plugins`, and its stores. */
  #descriptions
  #stores
  #observer
  #lastUpdate = Promise.resolve()
  /** Removed plugins that still have calls. */
  #retiring = new Map()
  /** The timer that ends the remaining calls while the app closes. */
  #endTimer
  #closed
  #tracksUnavailable = false
  #isDraining = false

  /** `define` converts the option `plugins` to definitions, and checks that the plugins of all routes exist. */
  constructor (define) {
    this.#define = define
  }

  static async open (descriptions, define) {
    const plugins = new Plugins(define)
    await plugins.update(descriptions)
    return plugins
  }

  get names () {
    return [...this.#byName.keys()]
  }

  /** The stores of all plugins, as far as they are known: a Plugin that the app passed does not expose its store. */
  get stores () {
    return this.#stores
  }

  /** Whether the app is about to be closed, and load balancers should send no more requests. */
  get isDraining () {
    return this.#isDraining
  }

  drain () {
    this.#isDraining = true
  }

  plugin (name) {
    const plugin = this.#byName.get(name)
    if (plugin === undefined) {
      throw invalidArgument(`there is no plugin of that name; there are ${this.names.map((one) => `"${one}"`).join(', ')}`)
    }
    return plugin
  }

  /** Calls `observer` with the plugin's name and the arguments of `HostedPlugin.observe`, also for plugins added later. */
  observe (observer) {
    this.#observer = observer
    for (const name of this.names) this.#observe(name)
  }

  /** Makes `checkReady` of all plugins take calls into account that failed with UNAVAILABLE. */
  trackUnavailable () {
    this.#tracksUnavailable = true
    for (const plugin of this.#byName.values()) plugin.trackUnavailable()
  }

  #observe (name) {
    this.plugin(name).observe((...outcome) => this.#observer(name, ...outcome))
  }

  async reload (name) {
    const plugin = this.plugin(name)
    await this.#traceReload(name, async () => {
      // Without this, the reload could restore the definition from before the update.
      await this.#lastUpdate
      await plugin.reload()
    })
  }

  /** Replaces the module of a plugin by these bytes, if they pass the checks of a reload. */
  upload (name, bytes) {
    return this.#traceReload(name, () => this.#inTurn(() => this.plugin(name).upload(bytes)))
  }

  /** Adds and replaces plugins, and removes those whose value is `null`. If one cannot be opened, changes nothing. */
  update (changes) {
    const replaced = Object.keys(changes).filter((name) => this.#byName.has(name) && changes[name] !== null)
    const work = () => this.#inTurn(() => this.#update(changes))
    return replaced.reduce((work, name) => () => this.#traceReload(name, work), work)()
  }

  #inTurn (work) {
    const update = this.#lastUpdate.then(work)
    this.#lastUpdate = update.catch(() => {})
    return update
  }

  #traceReload (name, work) {
    return traceReload(name, () => this.#byName.get(name)?.stats().version, work)
  }

  async #update (changes) {
    if (this.#closed !== undefined) throw codedError('CLOSED', 'the app is closed')
    const descriptions = Object.fromEntries(Object.entries({ ...this.#descriptions, ...changes }).filter(([, value]) => value !== null))
    const { definitions, stores } = this.#define(descriptions)
    const changed = definitions.filter(({ name }) => Object.hasOwn(changes, name))
    const opened = await openAll(changed)
    await Promise.all(changed.map(({ name }) => this.#byName.get(name)?.idle))
    for (const [index, definition] of changed.entries()) this.#adopt(definition, opened[index])
    for (const name of this.names) if (!Object.hasOwn(descriptions, name)) this.#remove(name)
    this.#descriptions = descriptions
    this.#stores = stores
  }

  #adopt (definition, version) {
    const { name } = definition
    if (this.#byName.has(name)) return this.#byName.get(name).adopt(definition, version)
    this.#byName.set(name, new HostedPlugin(definition, version))
    if (this.#observer !== undefined) this.#observe(name)
    if (this.#tracksUnavailable) this.plugin(name).trackUnavailable()
  }

  #remove (name) {
    const plugin = this.plugin(name)
    this.#retiring.set(plugin, plugin.close().finally(() => this.#retiring.delete(plugin)))
    this.#byName.delete(name)
  }

  /** Ends the remaining calls after `milliseconds`. Closing the app waits for their requests. */
  endCallsAfter (milliseconds) {
    this.#endTimer ??= setTimeout(() => {
      for (const plugin of [...this.#retiring.keys(), ...this.#byName.values()]) plugin.endCalls()
    }, milliseconds)
  }

  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    await this.#lastUpdate
    await Promise.all([...this.#retiring.values(), ...[...this.#byName.values()].map((plugin) => plugin.close())])
    clearTimeout(this.#endTimer)
  }
}

/** Opens the versions of all definitions. If one fails, closes the others and rejects. */
async function openAll (definitions) {
  const opened = await Promise.allSettled(definitions.map((definition) => openVersion(definition)))
  const failed = opened.findIndex(({ status }) => status === 'rejected')
  if (failed === -1) return opened.map(({ value }) => value)
  await Promise.all(opened.map(({ value }, index) => definitions[index].external === undefined && value?.plugin.close()))
  const { reason } = opened[failed]
  throw Object.assign(new Error(`plugin "${definitions[failed].name}": ${reason.message}`, { cause: reason }), { code: reason.code })
}

module.exports = { Plugins }
