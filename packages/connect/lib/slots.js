'use strict'

/** So many may run at the same time; the others wait in a queue. */
class Slots {
  #free
  #waiting = []

  constructor (count) {
    this.#free = count
  }

  acquire (callback) {
    if (this.#free > 0) {
      this.#free--
      callback()
    } else {
      this.#waiting.push(callback)
    }
  }

  release () {
    const next = this.#waiting.shift()
    if (next === undefined) this.#free++
    else next()
  }
}

module.exports = { Slots }
