'use strict'

const { unwatchFile, watchFile } = require('node:fs')

/** The interval of polling. */
const INTERVAL_MS = 200

/** Report a change once the file has not changed for this long: most files are written in several steps. */
const SETTLED_MS = 200

/**
 * Calls `onChange` with the path of a changed file, and `onMissing` when a file disappears. It polls, because only
 * polling notices changes behind a symbolic link, or in a directory that was removed and created again.
 */
class FileWatcher {
  #onChange
  #onMissing
  #watched = new Map()

  constructor (onChange, onMissing) {
    this.#onChange = onChange
    this.#onMissing = onMissing
  }

  /** Watches exactly these files from now on. */
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
