'use strict'

// Measures the CPU time of an open plugin that is idle or called 100 times a second, and the duration of such a call.
// See README.md.

const { run, temporaryDirectory, cacheEnvironment } = require('./support/children.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const NONE = 'no plugin'
const FOREGROUND = 'JavaScript SDK, foreground'
const PROCESSES = [
  { name: NONE, library: 'none' },
  { name: FOREGROUND, library: 'sdk' },
  { name: 'extism-host, 1 instance', library: 'host' }
]
const MODES = { idle: 'idle', trickle: '100 calls a second' }

async function main () {
  // Few rounds are enough, because they are long and have little noise.
  const options = readOptions({ rounds: 5, seconds: 10 })
  const { rounds, seconds } = options
  const environment = cacheEnvironment(temporaryDirectory())
  const subjects = Object.keys(MODES).flatMap((mode) =>
    PROCESSES.map(({ name, library }) => ({ name: `${mode}: ${name}`, arguments: [library, mode, String(seconds)] })))
  const measured = await alternate(rounds, subjects, async (subject) =>
    (await run(['bench/children/idle.js', ...subject.arguments], environment)).printed)

  const results = {}
  for (const [mode, description] of Object.entries(MODES)) {
    results[mode] = Object.fromEntries(PROCESSES.map(({ name }) => [name, measured[`${mode}: ${name}`]]))
    const cpu = (name) => medians(results[mode][name]).cpuMillisecondsPerSecond
    const time = (name) => medians(results[mode][name]).callMicroseconds
    printTable(`CPU time, ${description}: medians of ${rounds} rounds of ${seconds} s`, PROCESSES.map(({ name }) => ({
      '': name,
      'CPU ms per second': cpu(name).toFixed(2),
      'over no plugin': (cpu(name) - cpu(NONE)).toFixed(2),
      '÷ SDK foreground': (cpu(name) / cpu(FOREGROUND)).toFixed(2),
      ...(mode === 'trickle' && { 'µs per call': time(name)?.toFixed(0) ?? '–' })
    })))
  }
  save(options, results)
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
