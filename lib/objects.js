'use strict'

// Reads objects that users write, such as manifests and options.

const { asBytes } = require('./bytes.js')
const { describe, invalidArgument } = require('./errors.js')

function isObject (value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !asBytes(value)
}

/**
 * Returns the properties of an object under their camelCase names; throws if one is unknown. The result inherits
 * nothing: a polluted `Object.prototype` must not set options.
 */
function pick (object, keys, what) {
  if (!isObject(object)) throw invalidArgument(`${what} must be an object, not ${describe(object)}`)
  const picked = Object.create(null)
  for (const key of Object.keys(object)) {
    const value = object[key]
    if (!Object.hasOwn(keys, key)) {
      throw invalidArgument(`${what} has no "${key}"; it takes ${Object.keys(keys).join(', ')}`)
    }
    if (value !== undefined && value !== null) picked[keys[key]] = value
  }
  return picked
}

/** Returns a table for `pick` with each key in camelCase and, as in Extism's JSON manifests, in snake_case. */
function inBothSpellings (...keys) {
  const snakeCase = (key) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
  return Object.fromEntries(keys.flatMap((key) => [[key, key], [snakeCase(key), key]]))
}

module.exports = { isObject, pick, inBothSpellings }
