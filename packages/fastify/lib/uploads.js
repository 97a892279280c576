'use strict'

// Uploaded modules of plugins, in a directory. A plugin that has one opens with it, in place of its configured module.

const { createHash, randomUUID } = require('node:crypto')
const { mkdir, open, readdir, readFile, rename, rm, stat } = require('node:fs/promises')
const { join } = require('node:path')
const { asBytes, codedError, isObject } = require('extism-host/internal')

/** As in Extism, the main module of a manifest is the one of this name, else the last one. */
const MAIN_MODULE = 'main'

/** The names of files that are not whole yet. */
const UNFINISHED = /^\.extism-host-[0-9a-f-]{36}\.tmp$/
/** No process still writes such a file after this time. If one does, its upload fails. */
const ABANDONED_MS = 60 * 60 * 1_000

class Uploads {
  #directory

  constructor (directory) {
    this.#directory = directory
  }

  /** Plugin names may contain anything; a file name must not leave the directory. */
  path (name) {
    return join(this.#directory, `${encodeURIComponent(name)}.wasm`)
  }

  /** The uploaded module of a plugin, or `undefined`. */
  async read (name) {
    try {
      return await readFile(this.path(name))
    } catch (error) {
      if (error.code === 'ENOENT') return undefined
      throw error
    }
  }

  /** Replaces the uploaded module of a plugin in one step, so that no crash leaves half a module. */
  async keep (name, bytes) {
    const unfinished = join(this.#directory, `.extism-host-${randomUUID()}.tmp`)
    try {
      await mkdir(this.#directory, { recursive: true, mode: 0o700 })
      // It may fail: another process may remove or rename the files at the same time.
      await this.#removeAbandoned().catch(() => {})
      const file = await open(unfinished, 'wx', 0o600)
      try {
        await file.writeFile(bytes)
        await file.sync()
      } finally {
        await file.close()
      }
      await rename(unfinished, this.path(name))
    } catch (cause) {
      await rm(unfinished, { force: true }).catch(() => {})
      throw Object.assign(new Error(`the upload cannot be kept on disk: ${cause.message}`, { cause }), { code: 'UPLOAD_NOT_KEPT' })
    }
  }

  /** Removes the unfinished files of processes that were killed. */
  async #removeAbandoned () {
    for (const name of await readdir(this.#directory)) {
      if (!UNFINISHED.test(name)) continue
      const file = join(this.#directory, name)
      const { mtimeMs } = await stat(file)
      if (mtimeMs < Date.now() - ABANDONED_MS) await rm(file, { force: true })
    }
  }
}

const isFile = (source) => (source instanceof URL && source.protocol === 'file:') ||
  (typeof source === 'string' && !/^\s*\{/.test(source) && !/^https?:/i.test(source))

/** The source of a plugin with other bytes as its main module. The rest of a manifest stays: limits, permissions, hash. */
function withMainModule (source, data) {
  if (isFile(source) || asBytes(source) !== undefined) return { wasm: [{ data }] }
  if (!isObject(source) || !Array.isArray(source.wasm) || source.wasm.length === 0) {
    throw codedError('UNSUPPORTED', 'only a plugin whose source is a file, bytes, or a manifest as an object takes uploads: ' +
      'what else a source from the network says is unknown')
  }
  const named = source.wasm.findIndex(({ name }) => name === MAIN_MODULE)
  const main = named === -1 ? source.wasm.length - 1 : named
  const replaced = ({ name, hash }) => ({ data, ...(name === undefined ? {} : { name }), ...(hash === undefined ? {} : { hash }) })
  return { ...source, wasm: source.wasm.map((module, index) => index === main ? replaced(module) : module) }
}

const describeUpload = (bytes) => ({ sha256: createHash('sha256').update(bytes).digest('hex'), bytes: bytes.length })

module.exports = { Uploads, describeUpload, withMainModule }
