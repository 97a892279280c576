'use strict'

// The option `allowedPaths`: directories that guests may use, and the order in which an object names them.

const { promises } = require('node:fs')
const { isAbsolute, resolve } = require('node:path')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { isObject, pick } = require('./objects.js')

const READ_ONLY = 'ro:'
const KEYS = { host: 'host', guest: 'guest', readOnly: 'readOnly' }

const warned = new Set()

/** Warns once for each kind. */
function warn (kind, message) {
  if (warned.has(kind)) return
  warned.add(kind)
  process.emitWarning(message, { code: 'EXTISM_HOST_ALLOWED_PATHS' })
}

const quote = (text) => JSON.stringify(text)

async function isDirectory (path) {
  try {
    return (await promises.stat(path)).isDirectory()
  } catch {
    return false
  }
}

/** Whether a directory is certainly empty: false if it cannot be read. */
async function isEmpty (path) {
  try {
    const directory = await promises.opendir(path)
    try {
      return await directory.read() === null
    } finally {
      await directory.close()
    }
  } catch {
    return false
  }
}

function checkPath (path, what) {
  if (typeof path !== 'string' || path === '') throw invalidArgument(`${what} must be a path, not ${path === '' ? 'empty' : describe(path)}`)
  if (path.includes('\0')) throw invalidArgument(`${what} has a NUL character`)
  return path
}

/** An item of an array, which says what is host and what is guest. */
async function fromItem (item, index) {
  const what = `allowedPaths[${index}]`
  const { host, guest, readOnly = false } = pick(item, KEYS, what)
  checkPath(host, `host of ${what}`)
  checkPath(guest, `guest of ${what}`)
  if (typeof readOnly !== 'boolean') throw invalidArgument(`readOnly of ${what} must be a boolean, not ${describe(readOnly)}`)
  if (!await isDirectory(host)) throw invalidArgument(`host of ${what}, ${quote(host)}, is not a directory`)
  return { host: resolve(host), guest, readOnly }
}

/**
 * A property of an object: `{[host]: guest}`, or the JavaScript SDK's `{[guest]: host}` if it cannot be anything else.
 * A wrong guess would give a guest the wrong directory. So if only the value is a directory here, but the order is
 * not certain, it throws; and if both are directories, it uses the documented order, with a warning.
 */
async function fromEntry (key, value) {
  checkPath(key, 'a key of allowedPaths')
  checkPath(value, `the value of ${quote(key)} in allowedPaths`)
  if (key.startsWith(READ_ONLY)) {
    const host = key.slice(READ_ONLY.length)
    if (!await isDirectory(host)) throw invalidArgument(`${quote(host)} in allowedPaths is not a directory`)
    return { host: resolve(host), guest: value, readOnly: true }
  }
  if (value.startsWith(READ_ONLY)) {
    // The JavaScript SDK's message, which programs compare.
    const refused = codedError('INVALID_ARGUMENT', `Readonly dirs are not supported: ${value}`)
    refused.cause = invalidArgument(`write ${quote(READ_ONLY + value.slice(READ_ONLY.length))}: ${quote(key)}, with this machine's directory first`)
    throw refused
  }
  const [isKeyHere, isValueHere] = await Promise.all([isDirectory(key), isDirectory(value)])
  // Guest paths are absolute, so a relative path belongs to this machine.
  if (isAbsolute(key) && !isAbsolute(value) && isValueHere) {
    warn('order', `allowedPaths names the guest's directory first (${quote(key)}: ${quote(value)}), as the JavaScript SDK of ` +
      `Extism does. All others, and extism-host, name this machine's first: {${quote(value)}: ${quote(key)}}`)
    return { host: resolve(value), guest: key, readOnly: false }
  }
  if (isKeyHere) {
    // No warning for an empty directory: most machines have an empty `/mnt`, for example.
    if (isValueHere && key !== value && !await isEmpty(value)) {
      const both = `allowedPaths maps directories of this machine to those of the guest, and both ${quote(key)} and ${quote(value)} are directories of this machine`
      const remedy = `Write [{ host: ${quote(key)}, guest: ${quote(value)} }] to be explicit`
      warn('both', `${both}; extism-host uses ${quote(key)} as this machine's. ${remedy}`)
    }
    return { host: resolve(key), guest: value, readOnly: false }
  }
  throw invalidArgument(`${quote(key)} in allowedPaths is not a directory of this machine` +
    (isValueHere ? `, but ${quote(value)} is: if you mean that one, put it first, {${quote(value)}: ${quote(key)}}` : ''))
}

/** Resolves the option to `{ host, guest, readOnly }` for each directory; `host` is absolute. */
async function allowedPathsOf (allowedPaths, useWasi) {
  if (allowedPaths === undefined) return []
  if (!Array.isArray(allowedPaths) && !isObject(allowedPaths)) {
    throw invalidArgument(`allowedPaths must be an object {host: guest} or an array of {host, guest, readOnly}, not ${describe(allowedPaths)}`)
  }
  const entries = Array.isArray(allowedPaths)
    ? allowedPaths.map(fromItem)
    : Object.entries(allowedPaths).map(([key, value]) => fromEntry(key, value))
  const paths = await Promise.all(entries)
  if (paths.length > 0 && !useWasi) {
    throw invalidArgument('allowedPaths needs WASI: pass useWasi: true')
  }
  return paths
}

module.exports = { allowedPathsOf }
