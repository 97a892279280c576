'use strict'

const { createPlugin } = require('..')
const { assemble, guest } = require('./support/guest.js')

let wasm
const plugins = []

beforeAll(async () => { wasm = await guest('many') })
afterEach(() => Promise.all(plugins.splice(0).map((plugin) => plugin.close())))

async function start (options) {
  const plugin = await createPlugin(wasm, options)
  plugins.push(plugin)
  return plugin
}

const count = async (plugin) => (await plugin.call('count')).getUint8(0)

describe('isolation', () => {
  test('by instance, the default, keeps the state from call to call', async () => {
    const plugin = await start({ isolation: 'instance' })
    expect([await count(plugin), await count(plugin), await count(plugin)]).toEqual([1, 2, 3])
  })

  test('by call leaves nothing of one call for the next', async () => {
    const plugin = await start({ isolation: 'call', instances: 2 })
    const counts = await Promise.all(Array.from({ length: 50 }, () => count(plugin)))
    expect(counts).toEqual(counts.map(() => 1))
    await expect(plugin.call('fail', 'why')).rejects.toMatchObject({ code: 'PLUGIN_ERROR' })
    expect(await count(plugin)).toBe(1)
    expect(plugin.stats().replaced.isolation).toBeGreaterThanOrEqual(50)
  })

  test('of another name is refused', async () => {
    await expect(start({ isolation: 'process' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })
})

describe('fuel', () => {
  test('ends a call that uses it up, and the next one has as much again', async () => {
    const plugin = await start({ fuel: 1_000_000 })
    for (let round = 0; round < 3; round++) {
      await expect(plugin.call('loop_for_ever')).rejects.toMatchObject({
        code: 'FUEL_EXHAUSTED',
        message: expect.stringContaining('fuel')
      })
      for (let i = 0; i < 50; i++) expect((await plugin.call('echo', `call ${i}`)).text()).toBe(`call ${i}`)
    }
    const { calls, replaced } = plugin.stats()
    expect(calls).toEqual({ succeeded: 150, failed: { FUEL_EXHAUSTED: 3 } })
    expect(replaced.fuelExhausted).toBe(3)
  })

  test('is for each call: what one leaves is no other\'s', async () => {
    const plugin = await start({ fuel: 200_000 })
    // Together they use far more than one may.
    for (let i = 0; i < 500; i++) await plugin.call('echo', 'x'.repeat(1_000))
    expect(await count(plugin)).toBe(1)
    expect(await count(plugin)).toBe(2)
  })

  test('is used up at the same place each time', async () => {
    const plugin = await start({ fuel: 1_000_000 })
    const outcomes = await Promise.all(Array.from({ length: 20 }, () => plugin.call('loop_for_ever').catch(({ code }) => code)))
    expect(new Set(outcomes)).toEqual(new Set(['FUEL_EXHAUSTED']))
  })

  test('that is too little is an error of the call; of createPlugin if the initialization needs more', async () => {
    const plugin = await start({ fuel: 1 })
    await expect(plugin.call('echo', 'input')).rejects.toMatchObject({ code: 'FUEL_EXHAUSTED' })
    const busy = await assemble(`(module (func (export "_initialize") (local $i i32)
      (loop $again
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const 1000))))))`)
    await expect(createPlugin(busy, { fuel: 50 })).rejects.toMatchObject({ code: 'FUEL_EXHAUSTED' })
  })

  test('goes with time limits and aborts', async () => {
    const plugin = await start({ fuel: Number.MAX_SAFE_INTEGER, timeoutMs: 50 })
    await expect(plugin.call('loop_for_ever')).rejects.toMatchObject({ code: 'TIMEOUT' })
    await expect(plugin.call('loop_for_ever', '', null, { signal: AbortSignal.timeout(20) })).rejects.toThrow()
    expect((await plugin.call('echo', 'alive')).text()).toBe('alive')
  })

  for (const fuel of [0, -1, 1.5, '1000', Infinity]) {
    test(`of ${typeof fuel} ${fuel} is refused`, async () => {
      await expect(start({ fuel })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    })
  }
})
