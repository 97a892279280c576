'use strict'

// A plugin whose calls compute until they are interrupted has a low priority, so that others need not wait for a core.

const { readdirSync, readFileSync } = require('node:fs')
const { setTimeout: sleep } = require('node:timers/promises')
const { assemble } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

const open = pluginsOfEachTest()
const onLinux = process.platform === 'linux' ? describe : describe.skip

/** Its function computes until it is interrupted if there is an input, and otherwise tells how often it has answered. */
const source = `(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (global $answers (mut i32) (i32.const 0))
  (func (export "run")
    (local $block i64)
    (if (i64.ne (call $input_length) (i64.const 0)) (then (loop $forever (br $forever))))
    (global.set $answers (i32.add (global.get $answers) (i32.const 1)))
    (local.set $block (call $alloc (i64.const 1)))
    (call $store_u8 (local.get $block) (global.get $answers))
    (call $output_set (local.get $block) (i64.const 1))))`

const THREADS = '/proc/self/task'

/** Threads that were there before the test: of other tests' plugins, for example. */
let others

/** Empty if the thread has ended. */
function readStat (thread) {
  try {
    return readFileSync(`${THREADS}/${thread}/stat`, 'utf8')
  } catch {
    return ''
  }
}

/** Nice values of the threads that run this test's plugins, in ascending order. */
function niceValues () {
  return readdirSync(THREADS)
    .filter((thread) => !others.has(thread))
    .map(readStat)
    .filter((stat) => stat.includes('(extism-instance)'))
    // The fields after the name, which is in parentheses; the first of them is the third.
    .map((stat) => Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19 - 3]))
    .sort((a, b) => a - b)
}

const timeOut = (plugin) =>
  expect(plugin.call('run', 'x', null, { timeoutMs: 50 })).rejects.toMatchObject({ code: 'TIMEOUT' })
const answers = async (plugin) => (await plugin.call('run')).getUint8(0)

/** A call that has hardly had a core does not count, so on a busy machine it may take some. */
async function timeOutUntilLow (plugin) {
  do {
    await timeOut(plugin)
    await sleep(20)
  } while (niceValues().every((value) => value === niceValues()[0]))
}

async function untilAre (expected) {
  while (String(niceValues()) !== String(expected)) await sleep(5)
}

onLinux('the thread of a plugin', () => {
  let wasm
  beforeAll(async () => { wasm = await assemble(source) })
  beforeEach(() => { others = new Set(readdirSync(THREADS)) })

  test('has a low priority after a call that computed until its deadline, and its own again after one that ended', async () => {
    const plugin = await open(wasm)
    const usual = niceValues()
    await timeOutUntilLow(plugin)
    // The low one serves calls, and the usual one waits for it.
    expect(niceValues()).toEqual([...usual, Math.min(usual[0] + 10, 19)])
    expect(await answers(plugin)).toBe(1)
    await untilAre(usual)
    // The instance has stayed the same.
    expect(await answers(plugin)).toBe(2)
  })

  test('keeps its priority after a call that waited until its deadline', async () => {
    const wait = () => new Promise(() => {})
    const plugin = await open(await assemble(`(module
      (import "extism:host/user" "wait" (func $wait))
      (func (export "run") (call $wait)))`), { functions: { 'extism:host/user': { wait } } })
    const usual = niceValues()
    for (let call = 0; call < 3; call++) {
      await timeOut(plugin)
      expect(niceValues()).toEqual(usual)
    }
  })

  test('keeps its priority when another plugin loses it', async () => {
    const [greedy, other] = [await open(wasm), await open(wasm)]
    const usual = niceValues()
    await timeOutUntilLow(greedy)
    expect(await answers(other)).toBe(1)
    expect(niceValues().slice(0, 2)).toEqual(usual)
  })

  test('can be closed while its priority is low', async () => {
    const plugin = await open(wasm)
    await timeOutUntilLow(plugin)
    await plugin.close()
    await untilAre([])
  })
})
