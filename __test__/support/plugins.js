'use strict'

const { createPlugin } = require('../..')

/** Gives a function that opens plugins as createPlugin does; after each test they are closed. */
function pluginsOfEachTest () {
  let open = []
  afterEach(async () => {
    await Promise.all(open.map((plugin) => plugin.close()))
    open = []
  })
  return async (wasm, options) => {
    const plugin = await createPlugin(wasm, options)
    open.push(plugin)
    return plugin
  }
}

module.exports = { pluginsOfEachTest }
