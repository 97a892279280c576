import extismHost from './index.js'

export const {
  createPlugin, newPlugin, precompile, openStore, keyvAdapter, CAPABILITIES, CallContext, MemoryStore, Plugin, PluginOutput, Store
} = extismHost

export default createPlugin
