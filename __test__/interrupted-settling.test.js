'use strict'

const vm = require('node:vm')
const { assemble } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { runNode } = require('./support/processes.js')
const { openStore } = require('..')

const open = pluginsOfEachTest()

const TEXT = `(module
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "log_info" (func $log_info (param i64)))
  (import "extism:host/user" "ask" (func $ask))
  (func $echo (export "echo") (call $output (call $input) (call $length (call $input))))
  (func (export "log") (call $log_info (call $input)) (call $echo))
  (func (export "ask") (call $ask) (call $echo)))`

let wasm
beforeAll(async () => { wasm = await assemble(TEXT) })

const start = (options) => open(wasm, { functions: { 'extism:host/user': { ask () {} } }, ...options })

/** Runs `work` as a script that is interrupted after some milliseconds. */
function interrupted (work, timeout = 50) {
  expect(() => vm.runInNewContext('work()', { work }, { timeout })).toThrow(/timed out/)
}

function loopForEver () {
  for (;;) ;
}

/** That everything goes on: calls of this plugin and of another, synchronous ones, and stores. */
async function expectAllGoesOn (plugin) {
  const other = await start()
  for (const each of [plugin, other]) {
    const outputs = await Promise.all(['one', 'two', 'three'].map((input) => each.call('echo', input)))
    expect(outputs.map((output) => output.text())).toEqual(['one', 'two', 'three'])
    expect(each.callSync('echo', 'four').text()).toBe('four')
    expect(each.isActive()).toBe(false)
  }
  const store = await openStore('memory:')
  await store.set('key', 'value')
  expect(String(await store.get('key'))).toBe('value')
  await store.close()
}

test('a time limit of node:vm that interrupts a logger stops nothing else', async () => {
  const plugin = await start({ logger: { info: loopForEver }, logLevel: 'info' })
  interrupted(() => plugin.callSync('log', 'message'))
  await expectAllGoesOn(plugin)
})

test('a time limit of node:vm that interrupts a listener of a signal stops nothing else', async () => {
  const plugin = await start()
  let hasListener = true
  const signal = { aborted: false, addEventListener () {}, removeEventListener: () => { hasListener = false; loopForEver() } }
  const calls = ['one', 'two'].map((input) => plugin.call('echo', input, null, { signal: input === 'one' ? signal : undefined }))
  interrupted(() => plugin.callSync('echo', 'three'))
  expect((await Promise.all(calls)).map((output) => output.text())).toEqual(['one', 'two'])
  expect(hasListener).toBe(false)
  await expectAllGoesOn(plugin)
})

test('a time limit of node:vm that interrupts a host function stops nothing but that call', async () => {
  const plugin = await start({ functions: { 'extism:host/user': { ask: loopForEver } }, timeoutMs: 300 })
  const before = plugin.call('echo', 'before')
  interrupted(() => plugin.callSync('ask'))
  expect((await before).text()).toBe('before')
  await new Promise((resolve) => setTimeout(resolve, 400))
  await expectAllGoesOn(plugin)
})

test('time limits of node:vm that interrupt calls at any moment stop nothing', async () => {
  const plugin = await start({ logger: { info () {} }, logLevel: 'info', instances: 2 })
  for (let round = 0; round < 100; round++) {
    const calls = []
    interrupted(() => {
      for (;;) {
        calls.push(plugin.call('echo', 'a').catch(({ code }) => code))
        plugin.callSync(round % 2 === 0 ? 'echo' : 'log', 'b')
      }
    }, 1 + round % 3)
    await Promise.all(calls)
  }
  await expectAllGoesOn(plugin)
})

test('an error of a signal\'s removeEventListener is an uncaught exception, and stops nothing else', async () => {
  const { output, errors } = await runNode(['-e', `
    const { createPlugin } = require('.')
    process.on('uncaughtException', ({ message }) => console.log(message))
    const signal = { aborted: false, addEventListener () {}, removeEventListener () { throw new Error('not now') } }
    createPlugin(Buffer.from('${wasm.toString('base64')}', 'base64'), { functions: { 'extism:host/user': { ask () {} } } })
      .then(async (plugin) => {
        const outputs = await Promise.all(['one', 'two'].map((input) => plugin.call('echo', input, null, { signal })))
        console.log(outputs.map((output) => output.text()).join())
        await plugin.close()
      })`])
  expect(errors).toBe('')
  expect(output.trim().split('\n').sort()).toEqual(['not now', 'not now', 'one,two'])
})

test('a signal whose addEventListener throws fails its call alone', async () => {
  const plugin = await start()
  const signal = { aborted: false, addEventListener () { throw new Error('not now') }, removeEventListener () {} }
  await expect(plugin.call('echo', 'one', null, { signal })).rejects.toThrow('not now')
  await expectAllGoesOn(plugin)
})
