'use strict'

const { codedError, invalidArgument } = require('extism-host/internal')
const { HostedPlugin, openVersion } = require('./hosted-plugin.js')

/** What an app has as `fastify.extism`: its plugins by their names. */
class Plugins {
  #byName = new Map()
  #define
  /** The option `plugins`, and the stores that it names. */
  #described
  #stores
  #observer
  #lastUpdate = Promise.resolve()
  /** Removed plugins that still have calls. */
  #leaving = new Map()
  /** Ends the calls that are left when the app is to be closed. */
  #end
  #closed
  #notesRefusals = false
  #isDraining = false

  /** `define` turns the option `plugins` into definitions, and checks that routes find their plugins. */
  constructor (define) {
    this.#define = define
  }

  static async open (described, define) {
    const plugins = new Plugins(define)
    await plugins.update(described)
    return plugins
  }

  get names () {
    return [...this.#byName.keys()]
  }

  /** The stores of all plugins that are known here. */
  get stores () {
    return this.#stores
  }

  /** Whether the app is about to be closed, so that no more requests are to be sent to it. */
  get isDraining () {
    return this.#isDraining
  }

  drain () {
    this.#isDraining = true
  }

  plugin (name) {
    const plugin = this.#byName.get(name)
    if (plugin === undefined) {
      throw invalidArgument(`there is no such plugin; there are ${this.names.map((one) => `"${one}"`).join(', ')}`)
    }
    return plugin
  }

  /** Calls `observer` with the plugin's name and what `HostedPlugin.observe` passes, for plugins of later updates too. */
  observe (observer) {
    this.#observer = observer
    for (const name of this.names) this.#observe(name)
  }

  /** Has `checkReady` of all plugins know of calls that were refused. */
  noteRefusals () {
    this.#notesRefusals = true
    for (const plugin of this.#byName.values()) plugin.noteRefusals()
  }

  #observe (name) {
    this.plugin(name).observe((...outcome) => this.#observer(name, ...outcome))
  }

  async reload (name) {
    const plugin = this.plugin(name)
    // Or the reload could bring back the definition from before the update.
    await this.#lastUpdate
    await plugin.reload()
  }

  /** Adds, replaces and, where the value is `null`, removes plugins: all of them, or none if one cannot be opened. */
  update (changes) {
    const update = this.#lastUpdate.then(() => this.#update(changes))
    this.#lastUpdate = update.catch(() => {})
    return update
  }

  async #update (changes) {
    if (this.#closed !== undefined) throw codedError('CLOSED', 'the app is closed')
    const described = Object.fromEntries(Object.entries({ ...this.#described, ...changes }).filter(([, value]) => value !== null))
    const { definitions, stores } = this.#define(described)
    const changed = definitions.filter(({ name }) => Object.hasOwn(changes, name))
    const opened = await openAll(changed)
    await Promise.all(changed.map(({ name }) => this.#byName.get(name)?.idle))
    for (const [place, definition] of changed.entries()) this.#adopt(definition, opened[place])
    for (const name of this.names) if (!Object.hasOwn(described, name)) this.#remove(name)
    this.#described = described
    this.#stores = stores
  }

  #adopt (definition, version) {
    const { name } = definition
    if (this.#byName.has(name)) return this.#byName.get(name).adopt(definition, version)
    this.#byName.set(name, new HostedPlugin(definition, version))
    if (this.#observer !== undefined) this.#observe(name)
    if (this.#notesRefusals) this.plugin(name).noteRefusals()
  }

  #remove (name) {
    const plugin = this.plugin(name)
    this.#leaving.set(plugin, plugin.close().finally(() => this.#leaving.delete(plugin)))
    this.#byName.delete(name)
  }

  /** Calls have that many milliseconds to end from now on: the app is being closed, which waits for their requests. */
  endCallsAfter (milliseconds) {
    this.#end ??= setTimeout(() => {
      for (const plugin of [...this.#leaving.keys(), ...this.#byName.values()]) plugin.endCalls()
    }, milliseconds)
  }

  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    await this.#lastUpdate
    await Promise.all([...this.#leaving.values(), ...[...this.#byName.values()].map((plugin) => plugin.close())])
    clearTimeout(this.#end)
  }
}

/** The versions of all definitions; if one cannot be opened, those that are open are closed. */
async function openAll (definitions) {
  const opened = await Promise.allSettled(definitions.map(openVersion))
  const failed = opened.findIndex(({ status }) => status === 'rejected')
  if (failed === -1) return opened.map(({ value }) => value)
  await Promise.all(opened.map(({ value }, place) => definitions[place].given === undefined && value?.close()))
  const { reason } = opened[failed]
  throw Object.assign(new Error(`plugin "${definitions[failed].name}": ${reason.message}`, { cause: reason }), { code: reason.code })
}

module.exports = { Plugins }
