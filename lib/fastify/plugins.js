'use strict'

const { invalidArgument } = require('../errors.js')
const { HostedPlugin } = require('./hosted-plugin.js')

/** What an app has as `fastify.extism`: its plugins by their names. */
class Plugins {
  #byName

  constructor (byName) {
    this.#byName = byName
  }

  /** Opens all of them, or none: what is open is closed where another one cannot be opened. */
  static async open (definitions) {
    const opened = await Promise.allSettled(definitions.map((definition) => HostedPlugin.open(definition)))
    const failed = opened.findIndex(({ status }) => status === 'rejected')
    if (failed === -1) return new Plugins(new Map(definitions.map(({ name }, place) => [name, opened[place].value])))
    await Promise.all(opened.map(({ value }) => value?.close()))
    const { reason } = opened[failed]
    throw Object.assign(new Error(`plugin "${definitions[failed].name}": ${reason.message}`, { cause: reason }), { code: reason.code })
  }

  get names () {
    return [...this.#byName.keys()]
  }

  has (name) {
    return this.#byName.has(name)
  }

  plugin (name) {
    const plugin = this.#byName.get(name)
    if (plugin === undefined) {
      throw invalidArgument(`there is no such plugin; there are ${this.names.map((one) => `"${one}"`).join(', ')}`)
    }
    return plugin
  }

  async reload (name) {
    await this.plugin(name).reload()
  }

  async close () {
    await Promise.all([...this.#byName.values()].map((plugin) => plugin.close()))
  }
}

module.exports = { Plugins }
