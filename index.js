'use strict'

const { MemoryStore } = require('./lib/memory-store.js')
const { Plugin, createPlugin } = require('./lib/plugin.js')
const { PluginOutput } = require('./lib/plugin-output.js')

module.exports = { createPlugin, MemoryStore, Plugin, PluginOutput }
