'use strict'

// The async iterator over the changes of a store.

const { completeInBackground: complete } = require('./calls.js')

/** Not an async generator, because a generator's `return` waits for a pending `next`, and so for the next change. */
class StoreChanges {
  #nativeWatch
  #signal
  #onStop
  /** Fetched changes, in reverse order: the next one is last. */
  #fetched = []
  /** Resolves when the previous `next` has settled. */
  #previous = Promise.resolve()
  #isStopped = false
  /** If the signal was aborted: its reason, which the next `next` throws. */
  #aborted

  /** `nativeWatch` is a promise. `onStop` is called when the iteration stops. */
  constructor (nativeWatch, signal, onStop) {
    this.#nativeWatch = nativeWatch
    this.#signal = signal
    this.#onStop = onStop
    nativeWatch.then(() => {
      if (signal?.aborted) this.#abort()
      else signal?.addEventListener('abort', this.#abort, { once: true })
    }, () => this.#onStop())
  }

  #abort = () => {
    if (this.#isStopped) return
    this.#aborted = { reason: this.#signal.reason }
    this.#stop()
  }

  next () {
    const next = this.#previous.then(() => this.#next())
    // The caller of this `next` gets a rejection; later ones must still run.
    this.#previous = next.then(() => {}, () => {})
    return next
  }

  async #next () {
    const native = await this.#nativeWatch
    for (;;) {
      if (this.#isStopped) {
        const aborted = this.#aborted
        this.#aborted = undefined
        if (aborted !== undefined) throw aborted.reason
        return { done: true, value: undefined }
      }
      const change = this.#fetched.pop()
      if (change !== undefined) return { done: false, value: change }
      this.#fetched = changesOf(await complete(native, (number) => native.next(number)))
    }
  }

  async return (value) {
    this.#stop()
    return { done: true, value }
  }

  async throw (error) {
    this.#stop()
    throw error
  }

  #stop () {
    if (this.#isStopped) return
    this.#isStopped = true
    this.#fetched = []
    this.#signal?.removeEventListener('abort', this.#abort)
    this.#onStop()
    this.#nativeWatch.then((native) => native.stop(), () => {})
  }

  [Symbol.asyncIterator] () {
    return this
  }

  async [Symbol.asyncDispose] () {
    this.#stop()
  }

  get [Symbol.toStringTag] () {
    return 'StoreChanges'
  }
}

/** Converts native changes, in reverse order. */
function changesOf (native) {
  return native.reverse().map(([type, key, value]) => {
    const change = { type }
    if (key !== null) change.key = key
    if (value !== null) change.value = value
    return change
  })
}

module.exports = { StoreChanges }
