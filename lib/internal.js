'use strict'

// Shared by the packages of this repository. Not public: it may change in every version.

const { KERNEL_NAMESPACE, USER_NAMESPACE, WASI_NAMESPACE, errorCodes } = require('./native.js')
const { asBytes } = require('./bytes.js')
const { CallContext: { countConnectorCall, onCallEnd } } = require('./call-context.js')
const { asInteger, asOneOf } = require('./checks.js')
const { closeWithoutLoss } = require('./draining.js')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { LEVELS, SILENT } = require('./logging.js')
const { LogOutput } = require('./log-output.js')
const { isObject, pick } = require('./objects.js')
const { MAX_TIMER_MS, MAX_U32 } = require('./options.js')
const { TIMED_CALL } = require('./plugin.js')
const { encodingOf, functionsOf, resolve, toJsonSchema } = require('./plugin-schema.js')
const { NestedCounts } = require('./nested-counts.js')
const { asStore, listKeys } = require('./store.js')
const { STORE_START_MS, openStoreInTime } = require('./store-start.js')
const { traceReload } = require('./tracing.js')

module.exports = {
  KERNEL_NAMESPACE,
  USER_NAMESPACE,
  WASI_NAMESPACE,
  LEVELS,
  SILENT,
  STORE_START_MS,
  TIMED_CALL,
  MAX_TIMER_MS,
  MAX_U32,
  LogOutput,
  NestedCounts,
  asBytes,
  asInteger,
  asOneOf,
  asStore,
  closeWithoutLoss,
  codedError,
  countConnectorCall,
  describe,
  encodingOf,
  errorCodes,
  functionsOf,
  invalidArgument,
  isObject,
  listKeys,
  onCallEnd,
  openStoreInTime,
  pick,
  resolve,
  toJsonSchema,
  traceReload
}
