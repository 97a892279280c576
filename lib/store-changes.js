'use strict'

// The changes of a store, as they are iterated.

const { completeInBackground: complete } = require('./calls.js')

/**
 * An async iterator. It is no generator: the `return` of one waits for a `next` that waits, and so would
 * wait for the next change.
 */
class StoreChanges {
  #begun
  #signal
  #ended
  /** Changes that have been fetched, the next one last. */
  #fetched = []
  /** Settles when the `next` before has. */
  #last = Promise.resolve()
  #isStopped = false
  /** What is to be thrown in place of the end. */
  #aborted

  /** `begun` resolves to the native watch. `ended` is called when it has stopped. */
  constructor (begun, signal, ended) {
    this.#begun = begun
    this.#signal = signal
    this.#ended = ended
    begun.then(() => {
      if (signal?.aborted) this.#abort()
      else signal?.addEventListener('abort', this.#abort, { once: true })
    }, () => this.#ended())
  }

  #abort = () => {
    if (this.#isStopped) return
    this.#aborted = { reason: this.#signal.reason }
    this.#stop()
  }

  next () {
    const next = this.#last.then(() => this.#next())
    // Who has asked is told; the one after him is asked all the same.
    this.#last = next.then(() => {}, () => {})
    return next
  }

  async #next () {
    const native = await this.#begun
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
    this.#ended()
    this.#begun.then((native) => native.stop(), () => {})
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

/** The changes of the native part, the last one first. */
function changesOf (native) {
  return native.reverse().map(([type, key, value]) => {
    const change = { type }
    if (key !== null) change.key = key
    if (value !== null) change.value = value
    return change
  })
}

module.exports = { StoreChanges }
