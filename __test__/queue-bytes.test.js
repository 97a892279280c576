'use strict'

const { join } = require('node:path')
const { guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { runNode } = require('./support/processes.js')

const open = pluginsOfEachTest()
const KIBIBYTE = 1_024

let wasm

beforeAll(async () => { wasm = await guest('many') })

/** A plugin whose only instance is busy until the signal is aborted. */
async function openBusy (options) {
  const plugin = await open(wasm, options)
  const controller = new AbortController()
  const running = plugin.call('loop_for_ever', '', null, { signal: controller.signal })
  while ((await plugin.stats()).busy === 0) await new Promise((resolve) => setTimeout(resolve, 1))
  const free = async () => {
    controller.abort()
    await running.catch(() => {})
  }
  return { plugin, free }
}

describe('calls that wait', () => {
  test('are refused if their inputs exceed maxQueueBytes together, and the others are not', async () => {
    const { plugin, free } = await openBusy({ maxQueueBytes: 100 * KIBIBYTE })
    const accepted = Array.from({ length: 2 }, () => plugin.call('echo', Buffer.alloc(50 * KIBIBYTE)))
    await expect(plugin.call('echo', 'x')).rejects.toMatchObject({
      code: 'QUEUE_FULL', message: 'the queue already holds 102400 bytes of input; wait for a call, or raise maxQueueBytes or instances'
    })
    // One without an input takes nothing.
    const small = plugin.call('echo', '')
    await free()
    expect((await Promise.all(accepted)).map((output) => output.byteLength)).toEqual([50 * KIBIBYTE, 50 * KIBIBYTE])
    await small
    expect((await plugin.call('echo', 'room again')).text()).toBe('room again')
  })

  test('may exceed the limit if no other call waits', async () => {
    const { plugin, free } = await openBusy({ maxQueueBytes: 1 })
    const large = plugin.call('echo', Buffer.alloc(50 * KIBIBYTE))
    await expect(plugin.call('echo', 'x')).rejects.toMatchObject({ code: 'QUEUE_FULL' })
    await free()
    expect((await large).byteLength).toBe(50 * KIBIBYTE)
  })

  test('free their share of the queue when they are aborted', async () => {
    const { plugin, free } = await openBusy({ maxQueueBytes: 100 })
    const controller = new AbortController()
    const aborted = plugin.call('echo', Buffer.alloc(100), null, { signal: controller.signal })
    controller.abort()
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' })
    const next = plugin.call('echo', 'next')
    await free()
    expect((await next).text()).toBe('next')
  })

  test('may have 64 MiB without the option', async () => {
    const { plugin, free } = await openBusy()
    const calls = Array.from({ length: 65 }, () => plugin.call('echo', Buffer.alloc(2 ** 20)).then(() => 'accepted', (error) => error.code))
    await free()
    expect((await Promise.all(calls)).filter((outcome) => outcome === 'QUEUE_FULL')).toHaveLength(1)
  })
})

test('memory that a burst of large calls took is given back', async () => {
  const { code, signal, output, errors } = await runNode(['--expose-gc', join(__dirname, 'support/burst.js')])
  expect({ code, signal, errors }).toEqual({ code: 0, signal: null, errors: '' })
  const { before, peak, after } = JSON.parse(output)
  expect(peak).toBeGreaterThan(before + 200)
  expect(after).toBeLessThan(before + (peak - before) / 4)
}, 90_000)
