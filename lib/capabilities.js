'use strict'

/** The capabilities of this host, under the JavaScript SDK's names. */
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
