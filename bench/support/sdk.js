'use strict'

// The JavaScript SDK, set up to run the article's plugin.

const { createPlugin } = require('@extism/extism')
const { SAY_HELLO, MESSAGES } = require('./article.js')

/** Opens the plugin in the JavaScript SDK, with hostMemoryGet in JavaScript over a Map. */
function createSayHello (options) {
  const messages = new Map(MESSAGES)
  return createPlugin(SAY_HELLO, {
    useWasi: true,
    functions: {
      'extism:host/user': {
        hostMemoryGet (context, keyOffset) {
          const value = messages.get(context.read(keyOffset).text())
          return value === undefined ? 0n : context.store(value)
        }
      }
    },
    ...options
  })
}

/**
 * Runs one call at a time, as the SDK requires: a second call of a worker fails ("plugin is not reentrant"), and in the
 * foreground, calls that start in the same turn of the event loop all get the last one's output.
 */
function serialized (plugin) {
  let last = Promise.resolve()
  return (name, input) => {
    const call = last.then(() => plugin.call(name, input))
    last = call.catch(() => {})
    return call
  }
}

module.exports = { createPlugin, createSayHello, serialized }
