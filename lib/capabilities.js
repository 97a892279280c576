'use strict'

/** What this host can do, under the names that the JavaScript SDK has for it. */
const CAPABILITIES = Object.freeze({
  supportsJSPromiseInterface: true,
  allowSharedBufferCodec: true,
  manifestSupportsPaths: true,
  crossOriginChecksEnforced: false,
  fsAccess: true,
  hasWorkerCapability: true,
  supportsWasiPreview1: true,
  supportsTimeouts: true,
  get extismStdoutEnvVarSet () {
    return Boolean(process.env.EXTISM_ENABLE_WASI_OUTPUT)
  }
})

module.exports = { CAPABILITIES }
