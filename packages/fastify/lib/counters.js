'use strict'

// Adds up what versions of a plugin have counted.

/** Adds the counters of an object, and of the objects in it, to those of another. */
function sum (one, other) {
  const keys = [...new Set([...Object.keys(one), ...Object.keys(other)])]
  return Object.fromEntries(keys.map((key) => [key, (one[key] ?? 0) + (other[key] ?? 0)]))
}

/** Returns `stats` with the counters of `other`, the statistics of another version, added. All else stays. */
function addCounters (stats, other) {
  if (other === undefined) return stats
  if (stats === undefined) return other
  const { calls, made, waited, replaced, store } = other
  return {
    ...stats,
    calls: { succeeded: stats.calls.succeeded + calls.succeeded, failed: sum(stats.calls.failed, calls.failed) },
    made: stats.made + made,
    waited: stats.waited + waited,
    replaced: sum(stats.replaced, replaced),
    store: {
      reads: stats.store.reads + store.reads,
      hits: stats.store.hits + store.hits,
      writes: stats.store.writes + store.writes,
      failed: sum(stats.store.failed, store.failed)
    }
  }
}

module.exports = { addCounters }
