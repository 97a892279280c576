'use strict'

// The errors of this library: a stable code, and a message for people.

function codedError (code, message) {
  const error = code === 'INVALID_ARGUMENT' ? new TypeError(message) : new Error(message)
  error.code = code
  return error
}

function invalidArgument (message) {
  return codedError('INVALID_ARGUMENT', message)
}

/** Says what a value is, for messages, without quoting it: it may be long, or secret. */
function describe (value) {
  if (value === null || value === undefined) return String(value)
  if (typeof value === 'object') return `an instance of ${value.constructor?.name ?? 'Object'}`
  return `a ${typeof value}`
}

module.exports = { codedError, invalidArgument, describe }
