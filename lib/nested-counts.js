'use strict'

/** Counts by several labels, one inside the other. */
class NestedCounts {
  #counts = new Map()

  add (...labels) {
    const last = labels.pop()
    let counts = this.#counts
    for (const label of labels) {
      let inner = counts.get(label)
      if (inner === undefined) counts.set(label, inner = new Map())
      counts = inner
    }
    counts.set(last, (counts.get(last) ?? 0) + 1)
  }

  toObject () {
    return asObject(this.#counts)
  }
}

const asObject = (counts) => Object.fromEntries([...counts].map(([label, value]) => [label, value instanceof Map ? asObject(value) : value]))

module.exports = { NestedCounts }
