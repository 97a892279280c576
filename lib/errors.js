'use strict'

// The errors of this library: a stable code, and a message for people.

const ours = new WeakSet()

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

module.exports = { codedError, invalidArgument, ofCall, describe }
