'use strict'

const { CallContext } = require('./lib/call-context.js')
const { keyvAdapter } = require('./lib/keyv-adapter.js')
const { MemoryStore } = require('./lib/memory-store.js')
const { Plugin, createPlugin, precompile } = require('./lib/plugin.js')
const { PluginOutput } = require('./lib/plugin-output.js')
const { Store, openStore } = require('./lib/store.js')

module.exports = { createPlugin, keyvAdapter, openStore, precompile, CallContext, MemoryStore, Plugin, PluginOutput, Store }
