import extismHost from './index.js'

export const {
  createPlugin, newPlugin, precompile, CAPABILITIES, CallContext, MemoryStore, Plugin, PluginOutput
} = extismHost

export default createPlugin
