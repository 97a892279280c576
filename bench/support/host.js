'use strict'

// extism-host, set up to run the article's plugin; ./sdk.js does the same with the JavaScript SDK.

const { createPlugin, MemoryStore } = require('../../index.js')
const { SAY_HELLO, MESSAGES } = require('./article.js')

function createSayHello (options) {
  return createPlugin(SAY_HELLO, { useWasi: true, store: new MemoryStore(MESSAGES), ...options })
}

module.exports = { createSayHello }
