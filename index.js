'use strict'

const { MemoryStore } = require('./lib/memory-store.js')
const { Plugin, createPlugin, precompile } = require('./lib/plugin.js')
const { PluginOutput } = require('./lib/plugin-output.js')

module.exports = { createPlugin, precompile, MemoryStore, Plugin, PluginOutput }
