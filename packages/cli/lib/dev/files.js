'use strict'

const { readdir } = require('node:fs/promises')
const { join } = require('node:path')

/** The files in a directory and below it, except in directories of these names or whose name begins with a dot. */
async function * filesIn (directory, skipped) {
  for (const entry of await readdir(directory, { withFileTypes: true }).catch(() => [])) {
    const path = join(directory, entry.name)
    if (entry.name.startsWith('.') || skipped.includes(entry.name)) continue
    if (entry.isDirectory()) yield * filesIn(path, skipped)
    else if (entry.isFile()) yield path
  }
}

module.exports = { filesIn }
