'use strict'

// The errors of this library: a stable code, and a message for people.

const binding = require('../binding.js')

const ours = new WeakSet()

/** What has a code and is made here. With INVALID_ARGUMENT that is a TypeError, so `instanceof` cannot go by the prototype. */
class PluginError extends Error {
  static [Symbol.hasInstance] (value) {
    return ours.has(value)
  }
}

/** Codes of errors that are known in JavaScript only. */
const OWN_CODES = ['FETCH_FAILED', 'CONTEXT_ENDED', 'VARIABLES_FULL', 'ALREADY_REGISTERED', 'SMOKE_FAILED']

/** All codes, each under its own name. */
const ErrorCode = Object.freeze(Object.fromEntries([...binding.errorCodes(), ...OWN_CODES].map((code) => [code, code])))

/** `entry` and what it has called are left out of the stack. */
function codedError (code, message, entry = codedError) {
  const error = code === 'INVALID_ARGUMENT' ? new TypeError(message) : new Error(message)
  error.code = code
  Error.captureStackTrace(error, entry)
  ours.add(error)
  return error
}

function invalidArgument (message) {
  return codedError('INVALID_ARGUMENT', message, invalidArgument)
}

/** Adds to an error of this library which call it is of. Its stack begins with the caller of `entry`. */
function ofCall (error, plugin, name, entry) {
  if (!ours.has(error)) return error
  error.plugin = plugin
  if (typeof name === 'string') error.function = name
  Error.captureStackTrace(error, entry)
  return error
}

/** Says what a value is, for messages, without quoting it: it may be long, or secret. */
function describe (value) {
  if (value === null || value === undefined) return String(value)
  if (typeof value === 'object') return `an instance of ${value.constructor?.name ?? 'Object'}`
  return `a ${typeof value}`
}

module.exports = { ErrorCode, PluginError, codedError, invalidArgument, ofCall, describe }
