'use strict'

// Loads host functions from a JavaScript module of the user.

const { realpath, stat } = require('node:fs/promises')
const { pathToFileURL } = require('node:url')

/** When each file that was loaded had changed last. */
const changes = new Map()

/** The default export of a module, or else all its exports. Compilers mark a compiled `export default` with `__esModule`. */
function exportOf ({ default: exported, ...named }) {
  if (exported === undefined) return named
  return exported?.__esModule && Object.hasOwn(exported, 'default') ? exported.default : exported
}

async function importAnew (file) {
  const path = await realpath(file)
  const { ctimeMs } = await stat(path)
  // Node caches CommonJS modules by path and others by URL. Plugins share a module until its file changes.
  if (changes.get(path) !== ctimeMs) delete require.cache[path]
  changes.set(path, ctimeMs)
  return import(`${pathToFileURL(path)}?${ctimeMs}`)
}

/** Loads the host functions that a CommonJS or ES module exports, as the option `functions` of createPlugin. */
async function loadFunctions (file) {
  try {
    return exportOf(await importAnew(file))
  } catch (cause) {
    const [reason] = String(cause?.message ?? cause).split('\n')
    const code = cause?.code === 'ENOENT' ? 'FILE_NOT_FOUND' : 'INVALID_ARGUMENT'
    throw Object.assign(new Error(`cannot load host functions from ${file}: ${reason}`, { cause }), { code })
  }
}

module.exports = { loadFunctions }
