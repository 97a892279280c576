'use strict'

const { Writable } = require('node:stream')
const pino = require('pino')
const { assemble } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

const open = pluginsOfEachTest()
const LEVELS = ['trace', 'debug', 'info', 'warn', 'error']

// Logs its input at each level, or as often as the memory of the host allows.
const TEXT = `(module
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "get_log_level" (func $get_log_level (result i32)))
  ${LEVELS.map((level) => `(import "extism:host/env" "log_${level}" (func $log_${level} (param i64)))`).join('\n')}
  (func (export "log") ${LEVELS.map((level) => `(call $log_${level} (call $input))`).join(' ')})
  (func (export "level") (result i32) (call $get_log_level))
  (func (export "flood") (local $i i32)
    (loop $again
      (call $log_info (call $input))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $i) (i32.const 200000)))))
  (func (export "log_and_trap") (call $log_error (call $input)) unreachable))`

let wasm
beforeAll(async () => { wasm = await assemble(TEXT) })

/** A logger that keeps what it gets. */
function keeping () {
  const messages = []
  const logger = Object.fromEntries(LEVELS.map((level) => [level, (message) => messages.push(`${level}: ${message}`)]))
  return { logger, messages }
}

test('messages of the wanted levels go to the logger before the call is settled', async () => {
  const { logger, messages } = keeping()
  const plugin = await open(wasm, { logger, logLevel: 'trace' })
  await plugin.call('log', 'hello')
  expect(messages).toEqual(LEVELS.map((level) => `${level}: hello`))
})

test.each([...LEVELS, 'silent'].map((level, number) => [level, number]))('%s drops lower levels, and the guest can read the level', async (logLevel, number) => {
  const { logger, messages } = keeping()
  const plugin = await open(wasm, { logger, logLevel })
  await plugin.call('log', 'm')
  expect(messages).toEqual(LEVELS.slice(number).map((level) => `${level}: m`))
  const level = logLevel === 'silent' ? 0x7FFF_FFFF : number
  const outcome = await plugin.call('level').catch(({ message }) => message)
  expect(outcome).toEqual(level === 0 ? null : expect.stringContaining(`code ${level}`))
})

test('a plugin logs nothing by default', async () => {
  const { logger, messages } = keeping()
  await (await open(wasm, { logger })).call('log', 'm')
  expect(messages).toEqual([])
})

test('each plugin has its own logger, and each call may have one', async () => {
  const one = keeping()
  const two = keeping()
  const ofCall = keeping()
  const plugins = [await open(wasm, { logger: one.logger, logLevel: 'error' }), await open(wasm, { logger: two.logger, logLevel: 'error' })]
  await Promise.all([
    plugins[0].call('log', 'first'),
    plugins[1].call('log', 'second'),
    plugins[0].call('log', 'third', undefined, { logger: ofCall.logger })
  ])
  expect([one.messages, two.messages, ofCall.messages]).toEqual([['error: first'], ['error: second'], ['error: third']])
  plugins[0].callSync('log', 'fourth', undefined, { logger: ofCall.logger })
  expect(ofCall.messages).toEqual(['error: third', 'error: fourth'])
})

test.each([
  ['console', 'logger must be an object'],
  [{ info () {} }, 'logger must have a method for at least one of the levels warn, error']
])('%p is refused as the logger of a call', async (logger, message) => {
  const plugin = await open(wasm, { logLevel: 'warn' })
  const refusal = expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) })
  await expect(plugin.call('log', 'm', undefined, { logger })).rejects.toEqual(refusal)
  expect(() => plugin.callSync('log', 'm', undefined, { logger })).toThrow(refusal)
})

test('a logger gets no messages of levels that it has no method for', async () => {
  const messages = []
  const plugin = await open(wasm, { logger: { warn: (message) => messages.push(message) }, logLevel: 'trace' })
  await plugin.call('log', 'a warning')
  expect(messages).toEqual(['a warning'])
})

test('a logger may be one of pino\'s', async () => {
  const lines = []
  const stream = new Writable({ write (line, _, done) { lines.push(JSON.parse(line)); done() } })
  const plugin = await open(wasm, { logger: pino({ level: 'trace' }, stream).child({ request: 7 }), logLevel: 'warn' })
  await plugin.call('log', 'from the guest')
  expect(lines.map(({ level, request, msg }) => [level, request, msg])).toEqual([[40, 7, 'from the guest'], [50, 7, 'from the guest']])
})

test('messages before a trap are not lost, nor are those that are not UTF-8', async () => {
  const { logger, messages } = keeping()
  const plugin = await open(wasm, { logger, logLevel: 'error' })
  await expect(plugin.call('log_and_trap', Buffer.from([0x61, 0xFF]))).rejects.toMatchObject({ code: 'TRAP' })
  expect(messages).toEqual(['error: a�'])
})

test('a guest that floods its logger loses messages, causes a warning, and takes bounded memory', async () => {
  const { logger, messages } = keeping()
  const plugin = await open(wasm, { logger, logLevel: 'info' })
  await plugin.call('flood', 'x'.repeat(1_000))
  await plugin.call('log', 'after')
  expect(messages.length).toBeLessThan(200_000)
  expect(messages.some((message) => /^warn: dropped \d+ log messages of the plugin/.test(message))).toBe(true)
  expect(messages.at(-1)).toBe('error: after')
})

test.each([
  [{ logLevel: 'loud' }, 'logLevel must be one of trace'],
  [{ logLevel: 3 }, 'logLevel must be one of'],
  [{ logger: 'console' }, 'logger must be an object'],
  [{ logger: { info () {} }, logLevel: 'warn' }, 'logger must have a method']
])('%p is refused', async (options, message) => {
  await expect(open(wasm, options)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) })
})
