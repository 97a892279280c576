'use strict'

// Adds up what versions of a plugin have counted.

const COUNTERS = ['calls', 'made', 'waited', 'replaced', 'store', 'connectors']

/** Adds two numbers, or the numbers of two objects and of the objects in them. One of the two may be missing. */
function sum (one, other) {
  if (one === undefined || other === undefined) return one ?? other
  if (typeof one === 'number') return one + other
  const keys = new Set([...Object.keys(one), ...Object.keys(other)])
  return Object.fromEntries([...keys].map((key) => [key, sum(one[key], other[key])]))
}

/** Returns `stats` with the counters of `other`, the statistics of another version, added. All else stays. */
function addCounters (stats, other) {
  if (stats === undefined || other === undefined) return stats ?? other
  return { ...stats, ...Object.fromEntries(COUNTERS.map((name) => [name, sum(stats[name], other[name])])) }
}

module.exports = { addCounters }
