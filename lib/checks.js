'use strict'

// Checks of single options.

const { describe, invalidArgument } = require('./errors.js')

function checkSignal (signal) {
  if (typeof signal?.aborted !== 'boolean' || typeof signal.addEventListener !== 'function' ||
    typeof signal.removeEventListener !== 'function') {
    throw invalidArgument(`signal must be an AbortSignal, not ${describe(signal)}`)
  }
}

function asInteger (value, name, fallback, most, least = 1) {
  if (value === undefined) return fallback
  if (!Number.isInteger(value) || value < least || value > most) {
    throw invalidArgument(`${name} must be a whole number from ${least} to ${most}`)
  }
  return value
}

function asBoolean (value, name) {
  if (value === undefined) return false
  if (typeof value !== 'boolean') throw invalidArgument(`${name} must be a boolean, not ${describe(value)}`)
  return value
}

module.exports = { checkSignal, asBoolean, asInteger }
