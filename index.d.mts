import { createPlugin } from './index.js'

export * from './index.js'
export default createPlugin
