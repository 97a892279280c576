'use strict'

const { invalidArgument } = require('../errors.js')
const { createPlugin } = require('../plugin.js')

/** One of an app's plugins: by its name it stays the same, whatever Plugin serves its calls. */
class HostedPlugin {
  #plugin
  #isOwn
  /** The functions that routes call. */
  #functions

  constructor (plugin, isOwn, functions) {
    this.#plugin = plugin
    this.#isOwn = isOwn
    this.#functions = functions
  }

  static async open ({ name, given, source, options }, functions) {
    const plugin = given ?? await createPlugin(source, options)
    try {
      for (const functionName of functions) {
        if (await plugin.functionExists(functionName)) continue
        throw invalidArgument(`it has no function "${functionName}", which a route calls`)
      }
    } catch (error) {
      if (given === undefined) await plugin.close()
      throw error
    }
    return new HostedPlugin(plugin, given === undefined, functions)
  }

  call (functionName, input, hostContext, options) {
    return this.#plugin.call(functionName, input, hostContext, options)
  }

  stats () {
    return this.#plugin.stats()
  }

  /** A Plugin that was given is left to who has made it. */
  async close () {
    if (this.#isOwn) await this.#plugin.close()
  }
}

module.exports = { HostedPlugin }
