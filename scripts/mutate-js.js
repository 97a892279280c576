'use strict'

// The body of mutate-js.sh: `node scripts/mutate-js.js DIRECTORY FILES`.
//
// Stryker's instrumenter puts all mutants of the files into one copy of the tree; an environment variable activates one.
// Stryker's own runner would overlook mutants that only child processes of our tests execute. So this runner makes every
// process record the mutants that it executes, and then runs, for each mutant, only the tests that execute it.

const { spawn } = require('node:child_process')
const { createHash } = require('node:crypto')
const { appendFileSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } = require('node:fs')
const { join, resolve } = require('node:path')
const { pathToFileURL } = require('node:url')
const { randomNumbers } = require('../__test__/support/random.js')

const [directory, ...files] = process.argv.slice(2)
const TREE = resolve(directory, 'tree')
const COVERAGE = resolve(directory, 'coverage')
const { SAMPLE = Infinity, SEED = 1, ONLY, TESTS_MS = 60_000, LEAVE_OUT = '^$', WANTED = 0.9 } = process.env

/** Replaces Stryker's helper that counts in memory: it appends a mutant's number to a file on first execution. */
const RECORDER = `function stryCov_9fa48 (...ids) {
  const file = process.env.MUTANTS_EXECUTED
  if (!file) return
  const seen = (stryCov_9fa48.seen ??= new Set())
  const fresh = ids.filter((id) => !seen.has(id) && seen.add(id))
  if (fresh.length > 0) require('node:fs').appendFileSync(file, fresh.join('\\n') + '\\n')
}
function stryMutAct_9fa48`

async function instrument () {
  const load = (name) => import(pathToFileURL(require.resolve(name, { paths: [resolve(directory, 'stryker')] })))
  const [{ createInstrumenter }, { createInjector }] = await Promise.all([load('@stryker-mutator/instrumenter'), load('typed-inject')])
  const quiet = { isDebugEnabled: () => false, debug () {}, info () {}, warn () {} }
  const instrumenter = createInjector().provideValue('logger', quiet).injectFunction(createInstrumenter)
  const sources = files.map((name) => ({ name, content: readFileSync(name, 'utf8'), mutate: true }))
  const result = await instrumenter.instrument(sources, { plugins: null, excludedMutations: [], ignorers: [] })
  for (const { name, content } of result.files) {
    writeFileSync(join(TREE, name), content.replace(/function stryCov_9fa48[^]*?function stryMutAct_9fa48/, () => RECORDER))
  }
  return result.mutants
}

/** Resolves to 'passed', 'failed' or 'timeout' once all processes of the test have ended. */
function runTest (test, timeoutMs, env) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['node_modules/jest/bin/jest.js', '--bail', '--ci', '--runInBand', '--forceExit', '--runTestsByPath', test], {
      cwd: TREE, detached: true, stdio: 'ignore', env: { ...process.env, ...env }
    })
    let outcome
    const end = () => { try { process.kill(-child.pid, 'SIGKILL') } catch {} }
    const timer = setTimeout(() => { outcome = 'timeout'; end() }, timeoutMs)
    child.on('exit', (code) => {
      clearTimeout(timer)
      end()
      resolve(outcome ?? (code === 0 ? 'passed' : 'failed'))
    })
  })
}

/** Runs each test without a mutant, to record its duration and the mutants it executes. The directory caches the results. */
async function measure () {
  mkdirSync(COVERAGE, { recursive: true })
  const tests = []
  for (const name of readdirSync(join(TREE, '__test__')).filter((name) => name.endsWith('.test.js') && !new RegExp(LEAVE_OUT).test(name))) {
    const digest = createHash('sha256').update(readFileSync(join(TREE, '__test__', name)))
    for (const file of files) digest.update(readFileSync(file))
    const kept = join(COVERAGE, `${name}-${digest.digest('hex')}.json`)
    const executed = join(COVERAGE, name)
    if (!existsSync(kept)) {
      rmSync(executed, { force: true })
      const start = Date.now()
      const outcome = await runTest(`__test__/${name}`, 300_000, { MUTANTS_EXECUTED: executed })
      const mutants = existsSync(executed) ? [...new Set(readFileSync(executed, 'utf8').trim().split('\n'))] : []
      writeFileSync(kept, JSON.stringify({ name, outcome, ms: Date.now() - start, mutants }))
    }
    const test = JSON.parse(readFileSync(kept, 'utf8'))
    if (test.outcome === 'passed') tests.push({ ...test, mutants: new Set(test.mutants) })
    else console.log(`${name} is skipped: without a mutant, its outcome is "${test.outcome}".`)
  }
  return tests
}

function sample (mutants) {
  if (ONLY) return mutants.filter(({ id }) => ONLY.split(',').includes(id))
  const random = randomNumbers(Number(SEED))
  return mutants.map((mutant) => ({ mutant, key: random() })).sort((a, b) => a.key - b.key)
    .slice(0, Number(SAMPLE)).map(({ mutant }) => mutant)
}

/** Yields tests that execute the mutant: at least one, and more within TESTS_MS. Fast tests, those that execute most of its file, and those that killed many mutants come first. */
function * testsOf ({ id, fileName }, tests, all) {
  const ofFile = all.filter((mutant) => mutant.fileName === fileName)
  const cost = ({ ms, mutants, noticed }) => {
    const share = ofFile.filter((mutant) => mutants.has(mutant.id)).length / ofFile.length
    return ms / share ** 3 / (1 + (noticed?.[fileName] ?? 0))
  }
  const candidates = tests.filter(({ mutants }) => mutants.has(id))
    .map((test) => ({ test, key: cost(test) })).sort((a, b) => a.key - b.key).map(({ test }) => test)
  let left = Number(TESTS_MS)
  for (const test of candidates) {
    if (test !== candidates[0] && left < test.ms) continue
    left -= test.ms
    yield test
  }
}

async function tryMutant (mutant, tests, all) {
  let outcome = 'not executed'
  for (const test of testsOf(mutant, tests, all)) {
    outcome = await runTest(`__test__/${test.name}`, 3 * test.ms + 10_000, { __STRYKER_ACTIVE_MUTANT__: mutant.id })
    if (outcome !== 'passed') {
      test.noticed ??= {}
      test.noticed[mutant.fileName] = (test.noticed[mutant.fileName] ?? 0) + 1
      return { outcome, by: test.name }
    }
  }
  return { outcome: outcome === 'passed' ? 'survived' : outcome }
}

async function main () {
  const all = await instrument()
  const tests = await measure()
  const chosen = sample(all)
  console.log(`${chosen.length} of ${all.length} mutants in ${files.length} files`)
  let noticed = 0
  for (const [index, mutant] of chosen.entries()) {
    const { outcome, by } = await tryMutant(mutant, tests, all)
    if (by) noticed += 1
    const { id, fileName, location: { start }, mutatorName, replacement } = mutant
    appendFileSync(join(directory, 'results.jsonl'), JSON.stringify({ id, fileName, line: start.line + 1, mutatorName, replacement, outcome, by }) + '\n')
    if (!by) console.log(`${id} ${fileName}:${start.line + 1}:${start.column + 1} ${outcome}: ${mutatorName} ${replacement.replaceAll(/\s+/g, ' ').slice(0, 100)}`)
    if ((index + 1) % 20 === 0) console.log(`… ${noticed} of ${index + 1} noticed`)
  }
  console.log(`${noticed} of ${chosen.length} noticed: ${(100 * noticed / chosen.length).toFixed(1)} %`)
  process.exitCode = noticed / chosen.length < Number(WANTED) ? 1 : 0
}

main()
