'use strict'

// Checks keys, values and lifetimes for all stores.

const { asBytes } = require('./bytes.js')
const { asInteger } = require('./checks.js')
const { describe, invalidArgument } = require('./errors.js')
const { pick } = require('./objects.js')

const SET_KEYS = { ttlMs: 'ttlMs' }

function checkKey (key) {
  if (typeof key !== 'string') {
    throw invalidArgument(`a key must be a string, not ${describe(key)}`)
  }
}

/** Checks a key that is to be set. */
function checkNewKey (key) {
  checkKey(key)
  // UTF-8 has no lone surrogates: two such keys would become the same key, and values would change.
  if (!key.isWellFormed()) {
    throw invalidArgument('a key must be well-formed Unicode, without lone surrogates')
  }
}

/** Checks a value, and returns it as a string or a Uint8Array. */
function asValue (value) {
  if (typeof value === 'string') {
    if (!value.isWellFormed()) {
      throw invalidArgument('a string must be well-formed Unicode, without lone surrogates; store bytes instead')
    }
    return value
  }
  const bytes = asBytes(value)
  if (bytes === undefined) {
    throw invalidArgument(`a value must be a string or bytes, not ${describe(value)}`)
  }
  return bytes
}

/** Checks the options of `set`, and returns the lifetime in milliseconds, or `undefined` for none. */
function asLifetime (options) {
  if (options === undefined || options === null) return undefined
  const { ttlMs } = pick(options, SET_KEYS, 'the options of an entry')
  return asInteger(ttlMs, 'ttlMs', undefined, Number.MAX_SAFE_INTEGER)
}

module.exports = { checkKey, checkNewKey, asValue, asLifetime }
