'use strict'

const { unwatchFile, watchFile } = require('node:fs')

/** How often files are inspected. */
const INTERVAL_MS = 200

/** How long a file must be left alone before it counts as changed: most are written piece by piece. */
const SETTLED_MS = 200

/**
 * Calls `onChange` with the path of a file that has changed, and `onMissing` when it cannot be found. Files are polled:
 * only so does a change count that happens behind a symbolic link, or in a directory that was removed and made again.
 */
class FileWatcher {
  #onChange
  #onMissing
  #watched = new Map()

  constructor (onChange, onMissing) {
    this.#onChange = onChange
    this.#onMissing = onMissing
  }

  /** Watches these files, and no others any more. */
  watch (files) {
    for (const file of this.#watched.keys()) if (!files.includes(file)) this.#stop(file)
    for (const file of files) if (!this.#watched.has(file)) this.#start(file)
  }

  #start (file) {
    let settled
    const inspect = (now, before) => {
      clearTimeout(settled)
      const isMissing = now.ctimeMs === 0
      if (!isMissing) settled = setTimeout(() => this.#onChange(file), SETTLED_MS)
      else if (before.ctimeMs !== 0) this.#onMissing(file)
    }
    watchFile(file, { interval: INTERVAL_MS }, inspect)
    this.#watched.set(file, () => {
      clearTimeout(settled)
      unwatchFile(file, inspect)
    })
  }

  #stop (file) {
    this.#watched.get(file)()
    this.#watched.delete(file)
  }

  close () {
    this.watch([])
  }
}

module.exports = { FileWatcher }
