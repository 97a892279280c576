'use strict'

require('./lib/native.js')
const { CallContext } = require('./lib/call-context.js')
const { CAPABILITIES } = require('./lib/capabilities.js')
const { ErrorCode, PluginError } = require('./lib/errors.js')
const { keyvAdapter } = require('./lib/keyv-adapter.js')
const { MemoryStore } = require('./lib/memory-store.js')
const { Plugin, createPlugin, precompile } = require('./lib/plugin.js')
const { PluginOutput } = require('./lib/plugin-output.js')
const { Store, openStore } = require('./lib/store.js')

// The export is the function createPlugin, like the default export of Extism's JavaScript SDK.
module.exports = Object.assign(createPlugin, {
  createPlugin,
  newPlugin: createPlugin,
  precompile,
  openStore,
  keyvAdapter,
  CAPABILITIES,
  CallContext,
  MemoryStore,
  ErrorCode,
  Plugin,
  PluginError,
  PluginOutput,
  Store,
  default: createPlugin
})

// Compilers that turn `import` into `require` look for the default export only if this is set.
Object.defineProperty(module.exports, '__esModule', { value: true })
