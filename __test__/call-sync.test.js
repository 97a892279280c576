'use strict'

const { createPlugin, PluginOutput } = require('..')
const { guest } = require('./support/guest.js')
const { until } = require('./support/until.js')

let plugin

beforeAll(async () => { plugin = await createPlugin(await guest('many'), { instances: 2 }) })
afterAll(() => plugin.close())

test('gives the output at once', () => {
  const output = plugin.callSync('echo', 'hello')
  expect(output).toBeInstanceOf(PluginOutput)
  expect(output.text()).toBe('hello')
  expect(plugin.callSync('silent', 'hello')).toBeNull()
  expect(plugin.callSync('echo', 'x'.repeat(2_000_000)).byteLength).toBe(2_000_000)
})

test('throws what call rejects with', () => {
  const thrown = (run) => { try { run() } catch ({ code, message }) { return { code, message } } }
  expect(thrown(() => plugin.callSync('fail', 'why'))).toEqual({ code: 'PLUGIN_ERROR', message: expect.stringContaining('why') })
  expect(thrown(() => plugin.callSync('trap')).code).toBe('TRAP')
  expect(thrown(() => plugin.callSync('nothing')).code).toBe('FUNCTION_NOT_FOUND')
  expect(thrown(() => plugin.callSync('echo', 42)).code).toBe('INVALID_ARGUMENT')
  expect(thrown(() => plugin.callSync('echo', '', null, { signal: new AbortController().signal })).code).toBe('INVALID_ARGUMENT')
  expect(thrown(() => plugin.callSync('loop_for_ever', '', null, { timeoutMs: 30 })).code).toBe('TIMEOUT')
})

test('settles the calls that end meanwhile, and wakes threads for those that wait', async () => {
  const before = Array.from({ length: 100 }, (_, i) => plugin.call('echo', `before ${i}`))
  expect(plugin.callSync('echo', 'between').text()).toBe('between')
  const after = Array.from({ length: 100 }, (_, i) => plugin.call('echo', `after ${i}`))
  expect(plugin.callSync('echo', 'at last').text()).toBe('at last')
  const texts = (await Promise.all([...before, ...after])).map((output) => output.text())
  expect(texts).toEqual([
    ...Array.from({ length: 100 }, (_, i) => `before ${i}`),
    ...Array.from({ length: 100 }, (_, i) => `after ${i}`)
  ])
})

test('can be used by listeners and loggers that run while calls are settled', async () => {
  // A signal that is none of Node's: its listener is removed while calls are settled.
  let inside
  const signal = Object.assign(new EventTarget(), { aborted: false })
  signal.removeEventListener = () => { inside = plugin.callSync('echo', 'inside').text() }
  const outputs = await Promise.all(['one', 'two'].map((input) => plugin.call('echo', input, null, { signal })))
  expect(outputs.map((output) => output.text())).toEqual(['one', 'two'])
  expect(inside).toBe('inside')
})

describe('options passed as the host context', () => {
  const signal = AbortSignal.timeout(60_000)
  test.each([[{ signal }], [{ timeoutMs: 1 }], [{ signal, timeoutMs: 1, logger: console }], [Object.assign(Object.create(null), { signal })]])('are refused: %p', async (options) => {
    const refused = { code: 'INVALID_ARGUMENT', message: expect.stringContaining("call('echo', input, hostContext, options)") }
    await expect(plugin.call('echo', '', options)).rejects.toMatchObject(refused)
    expect(() => plugin.callSync('echo', '', options)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })

  test.each([[{}], [{ logger: console }], [{ signal, user: 1 }], [signal], [[signal]], ['signal'], [null]])('are not mistaken for a host context such as %p', async (hostContext) => {
    expect((await plugin.call('echo', 'yes', hostContext)).text()).toBe('yes')
    expect(plugin.callSync('echo', 'yes', hostContext).text()).toBe('yes')
  })

  test.each([[null], [{}]])('are a host context if the options are %p', async (options) => {
    expect((await plugin.call('echo', 'yes', { signal }, options)).text()).toBe('yes')
    expect(plugin.callSync('echo', 'yes', { signal }, options).text()).toBe('yes')
  })
})

test('stats count ended calls, and show the current state', async () => {
  const counted = await createPlugin(await guest('many'), { instances: 2, maxQueue: 4 })
  await counted.call('echo', 'x')
  counted.callSync('silent')
  await counted.call('fail', 'x').catch(() => {})
  await counted.call('trap').catch(() => {})
  const controller = new AbortController()
  const options = { signal: controller.signal }
  const running = Array.from({ length: 5 }, () => counted.call('loop_for_ever', '', null, options).catch(({ name, code }) => code ?? name))
  await new Promise((resolve) => setTimeout(resolve, 200))
  const busy = counted.stats()
  expect(busy).toMatchObject({ queued: 2, busy: 2, instances: 2, ready: 0, made: 3, abandonedThreads: 0 })
  expect(busy.waited).toBeGreaterThanOrEqual(2)
  controller.abort()
  expect((await Promise.all(running)).sort()).toEqual([20, 20, 20, 20, 'QUEUE_FULL'])
  await counted.call('echo', 'y')
  const { calls, queued } = counted.stats()
  expect(calls).toEqual({ succeeded: 3, failed: { PLUGIN_ERROR: 1, TRAP: 1, QUEUE_FULL: 1, CANCELED: 4 } })
  expect(queued).toBe(0)
  await until(() => counted.stats().ready === 2)
  // The first two, and one in the place of each that was replaced: after the trap, and after each aborted call that ran. A thread
  // whose call is aborted can take up a waiting call before that is aborted, too.
  const { made, replaced } = counted.stats()
  expect(replaced).toMatchObject({ trap: 1, outOfMemory: 0, memory: 0 })
  expect(replaced.interrupted).toBeGreaterThanOrEqual(2)
  expect(made).toBe(2 + replaced.trap + replaced.interrupted)
  await counted.close()
})
