'use strict'

// Measures the time of a fresh process to its first output, and the memory of another instance. See README.md.

const { run, temporaryDirectory, removeDirectory, cacheEnvironment } = require('./support/children.js')
const { readOptions, alternate, medians, printTable, save } = require('./support/measure.js')

const FOREGROUND = 'JavaScript SDK, foreground'
const STARTS = [
  { name: FOREGROUND, library: 'sdk' },
  { name: 'extism-host, compiled before', library: 'host' },
  { name: 'extism-host, compiled anew', library: 'host', isCold: true }
]
const MEMORY = [
  { name: FOREGROUND, kind: 'sdk' },
  { name: 'JavaScript SDK, worker', kind: 'worker' },
  { name: 'extism-host', kind: 'host' }
]
const MANY = 9

async function measureStart ({ library, isCold }, warmCache) {
  const cache = isCold ? temporaryDirectory() : warmCache
  const { printed, milliseconds } = await run(['bench/children/start.js', library], cacheEnvironment(cache))
  if (isCold) removeDirectory(cache)
  return { firstAnswer: printed.milliseconds, process: milliseconds }
}

async function measureMemory ({ kind }, warmCache) {
  const measure = async (number) => {
    const args = ['--expose-gc', 'bench/children/memory.js', kind, String(number)]
    return (await run(args, cacheEnvironment(warmCache))).printed.mebibytes
  }
  const one = await measure(1)
  const many = await measure(MANY)
  return { one, many, further: (many - one) / (MANY - 1) }
}

async function main () {
  // `--seconds` has no effect here, but run.sh passes the same options to all benchmarks.
  const { seconds, ...options } = readOptions({ rounds: 9, seconds: 1 })
  const { rounds } = options
  // The warm-up round fills it.
  const warmCache = temporaryDirectory()

  const start = await alternate(rounds, STARTS, (subject) => measureStart(subject, warmCache))
  const took = (name) => medians(start[name])
  printTable(`Start to the first answer, in fresh processes: medians of ${rounds} rounds`, STARTS.map(({ name }) => ({
    '': name,
    'first answer ms': took(name).firstAnswer.toFixed(0),
    '÷ SDK foreground': (took(name).firstAnswer / took(FOREGROUND).firstAnswer).toFixed(2),
    'whole process ms': took(name).process.toFixed(0),
    'process ÷ SDK foreground': (took(name).process / took(FOREGROUND).process).toFixed(2)
  })))

  const memory = await alternate(rounds, MEMORY, (subject) => measureMemory(subject, warmCache))
  const has = (name) => medians(memory[name])
  printTable(`Resident memory in MiB: medians of ${rounds} rounds`, MEMORY.map(({ name }) => ({
    '': name,
    '1 instance': has(name).one.toFixed(1),
    [`${MANY} instances`]: has(name).many.toFixed(1),
    'a further one': has(name).further.toFixed(1),
    '÷ SDK foreground': (has(name).further / has(FOREGROUND).further).toFixed(2)
  })))

  save(options, { start, memory })
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
