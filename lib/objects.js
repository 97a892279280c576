'use strict'

// Objects that users write: manifests, options, and what is in them.

const { asBytes } = require('./bytes.js')
const { describe, invalidArgument } = require('./errors.js')

function isObject (value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !asBytes(value)
}

/**
 * The known properties of an object under their camelCase names; anything else is an error. The result inherits nothing: a
 * polluted `Object.prototype` must not set options.
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

/** A table for `pick`: each key in camelCase and, as Extism's JSON manifests have it, in snake_case. */
function inBothSpellings (...keys) {
  const snakeCase = (key) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
  return Object.fromEntries(keys.flatMap((key) => [[key, key], [snakeCase(key), key]]))
}

module.exports = { isObject, pick, inBothSpellings }
