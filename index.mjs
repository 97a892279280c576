import extismHost from './index.js'

export const {
  createPlugin, newPlugin, precompile, openStore, keyvAdapter, CAPABILITIES, CallContext, ErrorCode, MemoryStore, Plugin, PluginError,
  PluginOutput, Store
} = extismHost

export default createPlugin
