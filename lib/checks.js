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
    throw invalidArgument(`${name} must be a whole number from ${least} to ${most}, not ${typeof value === 'number' ? value : describe(value)}`)
  }
  return value
}

function asBoolean (value, name) {
  if (value === undefined) return false
  if (typeof value !== 'boolean') throw invalidArgument(`${name} must be a boolean, not ${describe(value)}`)
  return value
}

function asOneOf (value, allowed, name) {
  if (allowed.includes(value)) return value
  const given = typeof value === 'string' ? JSON.stringify(value) : describe(value)
  throw invalidArgument(`${name} must be ${allowed.map((one) => JSON.stringify(one)).join(' or ')}, not ${given}`)
}

module.exports = { checkSignal, asBoolean, asInteger, asOneOf }
