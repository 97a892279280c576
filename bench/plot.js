'use strict'

// Draws plots of the results that the benchmarks wrote with `--json`, and updates the tables of
// docs/explanation/performance.md. It is deterministic. See README.md.
//
//   node bench/plot.js <directory of results>          writes docs/explanation/plots/*.svg and docs/explanation/performance.md
//   node bench/plot.js <directory of results> --check  only reports which of them would change

const { existsSync, mkdirSync, readFileSync, writeFileSync } = require('node:fs')
const { join } = require('node:path')
const { parseArgs } = require('node:util')
const { bars } = require('./support/bars.js')
const { median } = require('./support/measure.js')

const DOCUMENTS = join(__dirname, '../docs/explanation')
const MORE = 'more is better'
const LESS = 'less is better'

/** One measure of several subjects; the rows contain the values of all rounds. */
function panel (title, better, digits, results, key) {
  const rows = Object.entries(results)
    .map(([label, rounds]) => ({ label, values: rounds.map((round) => round[key]) }))
    .filter(({ values }) => values.every(Number.isFinite))
  return { title, better, digits, rows }
}

/**
 * The plots of each benchmark: a title, and lists of panels. The panels of one list have the same subjects, and also
 * become one table.
 */
const PLOTS = {
  http: {
    title: 'HTTP: a server with a plugin under load',
    groups: ({ full, half }) => [[
      panel('requests/s', MORE, 0, full, 'requestsPerSecond'),
      panel('p50 latency in ms', LESS, 2, full, 'p50'),
      panel('p99 latency in ms', LESS, 2, full, 'p99'),
      ...(half === undefined
        ? []
        : [
            panel('p50 in ms at half of the load that the SDK reached', LESS, 2, half, 'p50'),
            panel('p99 in ms at half of the load that the SDK reached', LESS, 2, half, 'p99')
          ])
    ]]
  },
  call: {
    title: 'What a call costs',
    groups: (results) => [Object.entries(results).map(([workload, result]) =>
      panel(`µs per call of ${workload}`, LESS, 1, result, 'microseconds'))]
  },
  'host-functions': {
    title: 'What a host function in JavaScript costs its guest',
    groups: (results) => Object.entries(results).map(([workload, result]) => [
      panel(`µs per call of ${workload}`, LESS, 2, result, 'microseconds')
    ])
  },
  large: {
    title: 'Large inputs and outputs',
    groups: (results) => [Object.entries(results).flatMap(([workload, result]) => [
      panel(`ms per call, ${workload}`, LESS, 2, result, 'milliseconds'),
      panel(`ms until call() returns, ${workload}`, LESS, 2, result, 'untilReturn')
    ])]
  },
  variants: {
    title: 'Fuel, and an instance for each call',
    groups: (results) => [Object.entries(results).map(([name, of]) => panel(`µs per call of ${name}, 32 in flight`, LESS, 1, of, 'microseconds'))]
  },
  'event-loop': {
    title: 'Delay of the event loop while a plugin computes',
    groups: ({ idle, ...busy }) => [[
      ...['p50', 'p99', 'max'].map((key) => panel(`${key} in ms`, LESS, 2, { 'no calls': idle, ...busy }, key)),
      panel('calls/s meanwhile', MORE, 1, busy, 'callsPerSecond')
    ]]
  },
  scaling: {
    title: 'A plugin that computes in a tight loop',
    groups: (results) => [[panel('calls/s', MORE, 0, results, 'callsPerSecond')]]
  },
  'scaling-http': {
    title: 'Past the limit of one event loop',
    groups: ({ calls, http }) => [
      [
        panel('calls/s of say_hello, without HTTP', MORE, 0, calls, 'callsPerSecond'),
        panel('CPU µs per call, all threads', LESS, 1, calls, 'cpuMicroseconds')
      ],
      [
        panel('HTTP requests/s', MORE, 0, http, 'requestsPerSecond'),
        panel('p99 latency in ms', LESS, 2, http, 'p99'),
        panel('CPU µs per request, all of the server\'s processes', LESS, 1, http, 'cpuMicroseconds')
      ]
    ]
  },
  start: {
    title: 'Start and memory',
    groups: ({ start, memory }) => [
      [
        panel('ms to the first answer', LESS, 0, start, 'firstAnswer'),
        panel('ms of the whole process', LESS, 0, start, 'process')
      ],
      [
        panel('MiB with one instance', LESS, 1, memory, 'one'),
        panel('MiB for each further instance', LESS, 1, memory, 'further')
      ]
    ]
  },
  idle: {
    title: 'CPU time of an open plugin',
    groups: ({ idle, trickle }) => [[
      panel('CPU ms per second, no calls', LESS, 2, idle, 'cpuMillisecondsPerSecond'),
      panel('CPU ms per second, 100 calls a second', LESS, 2, trickle, 'cpuMillisecondsPerSecond'),
      panel('µs per call, 100 calls a second', LESS, 0, trickle, 'callMicroseconds')
    ]]
  }
}

/** The median, the extremes, and the ratio of the median to the SDK's first row, as text. */
function summarize ({ rows, digits, ...rest }) {
  const reference = rows.find(({ label }) => label.startsWith('JavaScript SDK'))
  return {
    ...rest,
    rows: rows.map(({ label, values }) => {
      const middle = median(values)
      return {
        label,
        median: middle,
        least: Math.min(...values),
        most: Math.max(...values),
        text: middle.toFixed(digits),
        range: `${Math.min(...values).toFixed(digits)} to ${Math.max(...values).toFixed(digits)}`,
        ratio: `${(middle / median(reference.values)).toFixed(2)} ×`
      }
    })
  }
}

/** A Markdown table: a row for each subject, a column for each panel. */
function table (panels) {
  const labels = [...new Set(panels.flatMap(({ rows }) => rows.map(({ label }) => label)))]
  const cell = ({ rows }, label) => {
    const row = rows.find((row) => row.label === label)
    return row === undefined ? '–' : `**${row.text}** (${row.ratio}; ${row.range})`
  }
  return [
    `| | ${panels.map(({ title, better }) => `${title}, ${better}`).join(' | ')} |`,
    `|---|${panels.map(() => '---:|').join('')}`,
    ...labels.map((label) => `| ${label} | ${panels.map((panel) => cell(panel, label)).join(' | ')} |`)
  ].join('\n')
}

function conditions ({ machine, options }) {
  const { cores, processor, node, date } = machine
  const length = options.seconds === undefined ? '' : ` of ${options.seconds} s`
  return `${date.slice(0, 10)}, ${cores} cores (${processor}), Node ${node}, ` +
    `${options.rounds} ${options.rounds === 1 ? 'round' : 'rounds'}${length}`
}

/** The files for the results in a directory, with their contents. */
function draw (directory) {
  const files = new Map()
  const document = join(DOCUMENTS, 'performance.md')
  let text = readFileSync(document, 'utf8')
  for (const [name, { title, groups }] of Object.entries(PLOTS)) {
    const source = join(directory, `${name}.json`)
    if (!existsSync(source)) continue
    const { results, ...about } = JSON.parse(readFileSync(source, 'utf8'))
    // The CPU time of other processes is not available everywhere.
    const isMeasured = ({ rows }) => rows.length > 0
    const summarized = groups(results).map((panels) => panels.filter(isMeasured).map(summarize))
    const where = conditions(about)
    files.set(join(DOCUMENTS, 'plots', `${name}.svg`), bars(title, where, summarized.flat()))
    // Only this program writes the text between these marks.
    const marked = new RegExp(`(<!-- results: ${name} -->\n)[^]*?(<!-- end -->)`)
    text = text.replace(marked, (_, begin, end) =>
      `${begin}\n${where}:\n\n${summarized.map(table).join('\n\n')}\n\n${end}`)
  }
  files.set(document, text)
  return files
}

function main () {
  const { values, positionals } = parseArgs({ options: { check: { type: 'boolean' } }, allowPositionals: true })
  const [directory] = positionals
  if (directory === undefined || !existsSync(directory)) throw new Error('pass the directory of the results')
  for (const [path, content] of draw(directory)) {
    if (!values.check) {
      mkdirSync(join(DOCUMENTS, 'plots'), { recursive: true })
      writeFileSync(path, content)
    } else if (!existsSync(path) || readFileSync(path, 'utf8') !== content) {
      console.error(`${path} is out of date: run node bench/plot.js ${directory}`)
      process.exitCode = 1
    }
  }
}

main()
