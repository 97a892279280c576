'use strict'

const { guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

let many

const open = pluginsOfEachTest()
const start = (options, wasm = many) => open(wasm, options)

beforeAll(async () => { many = await guest('many') })

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

describe('an AbortSignal', () => {
  test('that was aborted before keeps the call from starting', async () => {
    const plugin = await start()
    const reason = new Error('changed my mind')
    await expect(plugin.call('count', '', null, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    expect((await plugin.call('count')).getUint8(0)).toBe(1)
  })

  test('that is aborted while the call waits keeps it from starting', async () => {
    const plugin = await start()
    const controller = new AbortController()
    const running = plugin.call('compute', new Uint8Array([10]))
    const waiting = plugin.call('count', '', null, { signal: controller.signal })
    controller.abort()
    await expect(waiting).rejects.toBe(controller.signal.reason)
    await expect(running).resolves.toBeNull()
    expect((await plugin.call('count')).getUint8(0)).toBe(1)
  })

  test('that is aborted while the call runs ends it, and the instance is replaced', async () => {
    const plugin = await start()
    await plugin.call('count')
    const controller = new AbortController()
    const running = plugin.call('loop_for_ever', '', null, { signal: controller.signal })
    await sleep(20)
    controller.abort(new Error('enough'))
    await expect(running).rejects.toThrow('enough')
    expect((await plugin.call('count')).getUint8(0)).toBe(1)
  })

  test('that is aborted after the call has ended changes nothing', async () => {
    const plugin = await start()
    const controller = new AbortController()
    const output = await plugin.call('count', '', null, { signal: controller.signal })
    controller.abort()
    expect(output.getUint8(0)).toBe(1)
    expect((await plugin.call('count')).getUint8(0)).toBe(2)
  })

  test('leaves the other instance\'s call alone', async () => {
    const plugin = await start({ instances: 2 })
    const controller = new AbortController()
    const looping = plugin.call('loop_for_ever', '', null, { signal: controller.signal })
    const computing = plugin.call('compute', new Uint8Array([20]))
    await sleep(20)
    controller.abort()
    await expect(looping).rejects.toBe(controller.signal.reason)
    await expect(computing).resolves.toBeNull()
  })

  test('of a time-out works like any other', async () => {
    const plugin = await start()
    const call = plugin.call('loop_for_ever', '', null, { signal: AbortSignal.timeout(20) })
    await expect(call).rejects.toMatchObject({ name: 'TimeoutError' })
  })

  for (const signal of [{}, 'now', new AbortController()]) {
    test(`that is ${typeof signal === 'string' ? signal : signal.constructor.name} is refused`, async () => {
      const plugin = await start()
      await expect(plugin.call('echo', 'x', null, { signal })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    })
  }

  test('aborted at 10,000 random moments settles each call once, with the right reason', async () => {
    const plugin = await start({ instances: 2 })
    let random = 42
    const next = (below) => {
      random = (random * 1103515245 + 12345) % 2147483648
      return Math.floor(random / 65536) % below
    }
    const ends = { output: 0, reason: 0 }
    async function one (number) {
      const controller = new AbortController()
      const loops = next(10) === 0
      const input = `call ${number}`
      const call = plugin.call(loops ? 'loop_for_ever' : 'echo', input, null, { signal: controller.signal })
      const reason = new Error(input)
      if (next(4) === 0) await null
      else if (next(3) > 0) await new Promise((resolve) => setImmediate(resolve))
      else await sleep(next(3))
      controller.abort(reason)
      const [result] = await Promise.allSettled([call])
      if (result.status === 'fulfilled') {
        ends.output++
        expect([loops, result.value.text()]).toEqual([false, input])
      } else {
        ends.reason++
        expect(result.reason).toBe(reason)
      }
    }
    for (let batch = 0; batch < 500; batch++) {
      await Promise.all(Array.from({ length: 20 }, (_, index) => one(batch * 20 + index)))
    }
    expect(ends.output + ends.reason).toBe(10_000)
    expect(Math.min(ends.output, ends.reason)).toBeGreaterThan(100)
    expect((await plugin.call('echo', 'still here')).text()).toBe('still here')
  }, 120_000)
})

describe('the time limit of a call', () => {
  test('overrides the plugin\'s', async () => {
    const plugin = await start({ timeoutMs: 60_000 })
    await expect(plugin.call('loop_for_ever', '', null, { timeoutMs: 30 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect((await plugin.call('echo', 'still here')).text()).toBe('still here')
  })

  test('must be a number of milliseconds', async () => {
    const plugin = await start()
    for (const timeoutMs of [0, -1, 1.5, '5', NaN]) {
      await expect(plugin.call('echo', 'x', null, { timeoutMs })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    }
  })

  test('and an option that does not exist is refused', async () => {
    const plugin = await start()
    await expect(plugin.call('echo', 'x', null, { timeout: 5 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('leaves a guest alone that sleeps in WASI for a shorter time', async () => {
    const plugin = await start({ useWasi: true, timeoutMs: 10_000 }, await guest('sleeping'))
    await expect(plugin.call('fault')).resolves.toBeNull()
    const begun = performance.now()
    await expect(plugin.call('nap')).resolves.toBeNull()
    expect(performance.now() - begun).toBeGreaterThan(9)
  })

  test('ends a guest that sleeps in WASI, and the plugin keeps working', async () => {
    const plugin = await start({ useWasi: true, timeoutMs: 100 }, await guest('sleeping'))
    let isAwake = false
    const alarm = setTimeout(() => { isAwake = true }, 4_500)
    await expect(plugin.call('sleep')).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect((await plugin.call('echo', 'still here')).text()).toBe('still here')
    clearTimeout(alarm)
    expect(isAwake).toBe(false)
    // Longer than an interrupted thread may take before it is abandoned.
    await sleep(500)
    expect(plugin.stats()).toMatchObject({ abandonedThreads: 0, replaced: { interrupted: 1 } })
  })
})
