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
  static async open (list, routes) {
    const opened = await Promise.allSettled(list.map((one) => {
      const functions = routes.filter(({ plugin }) => plugin === one.name).map(({ functionName }) => functionName)
      return HostedPlugin.open(one, new Set(functions))
    }))
    const plugins = new Plugins(new Map(list.map(({ name }, place) => [name, opened[place].value])))
    const failed = opened.findIndex(({ status }) => status === 'rejected')
    if (failed === -1) return plugins
    await plugins.close()
    const { reason } = opened[failed]
    throw Object.assign(new Error(`plugin "${list[failed].name}": ${reason.message}`, { cause: reason }), { code: reason.code })
  }

  get names () {
    return [...this.#byName.keys()]
  }

  plugin (name) {
    const plugin = this.#byName.get(name)
    if (plugin === undefined) {
      throw invalidArgument(`there is no such plugin; there are ${this.names.map((one) => `"${one}"`).join(', ')}`)
    }
    return plugin
  }

  async close () {
    await Promise.all([...this.#byName.values()].map((plugin) => plugin?.close()))
  }
}

module.exports = { Plugins }
