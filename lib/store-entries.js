'use strict'

// Keys, values and lifetimes, as stores take them.

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

/** A key that can be set. */
function checkNewKey (key) {
  checkKey(key)
  // UTF-8 has no lone surrogates: two such keys would become one, and a value would change.
  if (!key.isWellFormed()) {
    throw invalidArgument('a key must be well-formed Unicode, without lone surrogates')
  }
}

/** A string, or bytes. */
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

/** The lifetime that the options of `set` say, in milliseconds; `undefined` is for ever. */
function asLifetime (options) {
  if (options === undefined || options === null) return undefined
  const { ttlMs } = pick(options, SET_KEYS, 'the options of an entry')
  return asInteger(ttlMs, 'ttlMs', undefined, Number.MAX_SAFE_INTEGER)
}

module.exports = { checkKey, checkNewKey, asValue, asLifetime }
