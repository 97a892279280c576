'use strict'

// The errors of this library: a stable code, and a message for people.

const binding = require('../binding.js')
const { homepage } = require('../package.json')

const pluginErrors = new WeakSet()

/** The class of errors made by `codedError`. Some are TypeErrors, so `instanceof` cannot rely on the prototype. */
class PluginError extends Error {
  static [Symbol.hasInstance] (value) {
    return pluginErrors.has(value)
  }
}

/** Codes of errors that only JavaScript throws. */
const JS_CODES = ['FETCH_FAILED', 'CONTEXT_ENDED', 'VARIABLES_FULL', 'ALREADY_REGISTERED', 'SMOKE_FAILED']

/** All codes, each under its own name. */
const ErrorCode = Object.freeze(Object.fromEntries([...binding.errorCodes(), ...JS_CODES].map((code) => [code, code])))

/** The page of all codes, which has an anchor for each. */
const ERRORS_PAGE = `${homepage.split('#')[0]}/blob/main/docs/reference/errors.md`

/** Not enumerable, so that printed and logged errors stay short. */
const DOCS_PROPERTY = {
  configurable: true,
  get () {
    return `${ERRORS_PAGE}#${this.code.toLowerCase()}`
  }
}

/** Creates an error. Its stack begins with the caller of `entry`. */
function codedError (code, message, entry = codedError) {
  const error = code === 'INVALID_ARGUMENT' ? new TypeError(message) : new Error(message)
  error.code = code
  Object.defineProperty(error, 'docs', DOCS_PROPERTY)
  Error.captureStackTrace(error, entry)
  pluginErrors.add(error)
  return error
}

function invalidArgument (message) {
  return codedError('INVALID_ARGUMENT', message, invalidArgument)
}

/** Adds the plugin and the function to an error of this library. Its stack then begins with the caller of `entry`. */
function annotateCallError (error, plugin, name, entry) {
  if (!pluginErrors.has(error)) return error
  error.plugin = plugin
  if (typeof name === 'string') error.function = name
  Error.captureStackTrace(error, entry)
  return error
}

/** Describes a value for messages without quoting it: it may be long, or secret. */
function describe (value) {
  if (value === null || value === undefined) return String(value)
  if (typeof value === 'object') return `an instance of ${value.constructor?.name ?? 'Object'}`
  return `a ${typeof value}`
}

module.exports = { ErrorCode, PluginError, codedError, invalidArgument, annotateCallError, describe }
