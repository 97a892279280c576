'use strict'

// Shared by the benchmarks: options, alternating rounds, medians, tables, raw results.

const { writeFileSync } = require('node:fs')
const { availableParallelism, cpus } = require('node:os')
const { parseArgs } = require('node:util')

/**
 * Reads the command line: `--json file`, and one option for each default. A boolean is a flag;
 * numbers are whole and at least 1.
 */
function readOptions (defaults) {
  const known = { json: { type: 'string' } }
  for (const [name, value] of Object.entries(defaults)) {
    known[name] = { type: typeof value === 'boolean' ? 'boolean' : 'string' }
  }
  const options = { ...defaults, ...parseArgs({ options: known }).values }
  for (const [name, value] of Object.entries(defaults)) {
    if (typeof value !== 'number') continue
    options[name] = Number(options[name])
    if (!Number.isInteger(options[name]) || options[name] < 1) {
      throw new Error(`--${name} must be a whole number of at least 1`)
    }
  }
  return options
}

/**
 * Measures each subject once per round, so that other load on the machine affects all of them alike. The order rotates,
 * so that no subject always follows the same one. A first round does not count: it warms up the JIT compiler.
 */
async function alternate (rounds, subjects, measure) {
  const results = Object.fromEntries(subjects.map(({ name }) => [name, []]))
  for (let round = 0; round <= rounds; round++) {
    for (let i = 0; i < subjects.length; i++) {
      const subject = subjects[(i + round) % subjects.length]
      const result = await measure(subject)
      if (round > 0) results[subject.name].push(result)
    }
    console.error(round === 0 ? 'warmed up' : `round ${round} of ${rounds}`)
  }
  return results
}

function median (numbers) {
  const sorted = [...numbers].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/** The medians of each property of results that are flat objects of numbers. */
function medians (results) {
  return Object.fromEntries(Object.keys(results[0]).map((key) => [key, median(results.map((result) => result[key]))]))
}

/** Prints a Markdown table: rows are objects, their keys the columns; all but the first are numbers. */
function printTable (title, rows) {
  const columns = Object.keys(rows[0])
  const widths = columns.map((column) => Math.max(column.length, ...rows.map((row) => row[column].length)))
  const line = (cells) => `| ${cells.map((cell, i) => i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])).join(' | ')} |`
  console.log(`\n${title}\n`)
  console.log(line(columns))
  console.log(`|${widths.map((width, i) => i === 0 ? '-'.repeat(width + 2) : '-'.repeat(width + 1) + ':').join('|')}|`)
  for (const row of rows) console.log(line(columns.map((column) => row[column])))
}

function machine () {
  return { date: new Date().toISOString(), node: process.version, cores: availableParallelism(), processor: cpus()[0].model }
}

/** Writes the raw results of every round to the file of `--json`, if it is given. */
function save ({ json, ...options }, results) {
  if (json === undefined) return
  writeFileSync(json, JSON.stringify({ machine: machine(), options, results }, null, 2) + '\n')
}

module.exports = { readOptions, alternate, median, medians, printTable, save }
