'use strict'

// Directories that guests may use, and in which order they are named.

const { promises } = require('node:fs')
const { isAbsolute, resolve } = require('node:path')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { isObject, pick } = require('./objects.js')

const READ_ONLY = 'ro:'
const KEYS = { host: 'host', guest: 'guest', readOnly: 'readOnly' }

const warned = new Set()

/** Tells once of each kind. */
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

/** Whether there is nothing in a directory. One that cannot be read may have something. */
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

/** One of an array: nothing is to be guessed. */
async function explicit (item, index) {
  const what = `allowedPaths[${index}]`
  const { host, guest, readOnly = false } = pick(item, KEYS, what)
  checkPath(host, `host of ${what}`)
  checkPath(guest, `guest of ${what}`)
  if (typeof readOnly !== 'boolean') throw invalidArgument(`readOnly of ${what} must be a boolean, not ${describe(readOnly)}`)
  if (!await isDirectory(host)) throw invalidArgument(`host of ${what}, ${quote(host)}, is no directory`)
  return { host: resolve(host), guest, readOnly }
}

/**
 * One of an object: `{[host]: guest}`, or what can only be the JavaScript SDK's `{[guest]: host}`. A wrong
 * guess would give a guest the wrong directory. So what looks like the other order and is not certain is
 * refused; and where it could be that, the documented order is taken, with a warning.
 */
async function named (key, value) {
  checkPath(key, 'a key of allowedPaths')
  checkPath(value, `the value of ${quote(key)} in allowedPaths`)
  if (key.startsWith(READ_ONLY)) {
    const host = key.slice(READ_ONLY.length)
    if (!await isDirectory(host)) throw invalidArgument(`${quote(host)} in allowedPaths is no directory`)
    return { host: resolve(host), guest: value, readOnly: true }
  }
  if (value.startsWith(READ_ONLY)) {
    // The JavaScript SDK's words for it, which programs compare.
    const refused = codedError('INVALID_ARGUMENT', `Readonly dirs are not supported: ${value}`)
    refused.cause = invalidArgument(`write ${quote(READ_ONLY + value.slice(READ_ONLY.length))}: ${quote(key)}, with this machine's directory first`)
    throw refused
  }
  const [isKeyHere, isValueHere] = await Promise.all([isDirectory(key), isDirectory(value)])
  // A guest's path is absolute, so a relative one is of this machine.
  if (isAbsolute(key) && !isAbsolute(value) && isValueHere) {
    warn('order', `allowedPaths names the guest's directory first (${quote(key)}: ${quote(value)}), as the JavaScript SDK of ` +
      `Extism does. All others, and extism-host, name this machine's first: {${quote(value)}: ${quote(key)}}`)
    return { host: resolve(value), guest: key, readOnly: false }
  }
  if (isKeyHere) {
    // `/mnt` is on most machines, and empty.
    if (isValueHere && key !== value && !await isEmpty(value)) {
      const both = `allowedPaths maps directories of this machine to those of the guest, and both ${quote(key)} and ${quote(value)} are directories of this machine`
      const way = `[{ host: ${quote(key)}, guest: ${quote(value)} }] says without doubt which is which`
      warn('both', `${both}; ${quote(key)} is taken for this machine's. ${way}`)
    }
    return { host: resolve(key), guest: value, readOnly: false }
  }
  throw invalidArgument(`${quote(key)} in allowedPaths is no directory of this machine` +
    (isValueHere ? `, but ${quote(value)} is: if that is meant, name it first, {${quote(value)}: ${quote(key)}}` : ''))
}

/** The directories of the option, each as `{ host, guest, readOnly }` with an absolute path. */
async function allowedPathsOf (allowedPaths, useWasi) {
  if (allowedPaths === undefined) return []
  if (!Array.isArray(allowedPaths) && !isObject(allowedPaths)) {
    throw invalidArgument(`allowedPaths must be an object {host: guest} or an array of {host, guest, readOnly}, not ${describe(allowedPaths)}`)
  }
  const entries = Array.isArray(allowedPaths)
    ? allowedPaths.map(explicit)
    : Object.entries(allowedPaths).map(([key, value]) => named(key, value))
  const paths = await Promise.all(entries)
  if (paths.length > 0 && !useWasi) {
    throw invalidArgument('allowedPaths are directories for WASI, which this plugin has not; pass useWasi: true')
  }
  return paths
}

module.exports = { allowedPathsOf }
