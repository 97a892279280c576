'use strict'

const { PluginOutput } = require('..')
const { guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

let wasm

const open = pluginsOfEachTest()
const start = (options) => open(wasm, options)

beforeAll(async () => { wasm = await guest('many') })

describe('the input and the output', () => {
  test('a string arrives as UTF-8 and comes back as text', async () => {
    const plugin = await start()
    const output = await plugin.call('echo', 'I 💜 Extism 😍')
    expect(output.text()).toBe('I 💜 Extism 😍')
    expect(output.string()).toBe('I 💜 Extism 😍')
    expect(output.byteLength).toBe(Buffer.byteLength('I 💜 Extism 😍'))
  })

  test('bytes arrive unchanged, including 0xFF and NUL', async () => {
    const plugin = await start()
    const output = await plugin.call('echo', new Uint8Array([0xFF, 0x00, 0xFE]))
    expect([...output.bytes()]).toEqual([0xFF, 0x00, 0xFE])
    expect(output.text()).toBe('\uFFFD\0\uFFFD')
  })

  test('every type of bytes is accepted, and of a view only its part of the buffer', async () => {
    const plugin = await start()
    const shared = new Uint8Array(new SharedArrayBuffer(3))
    shared.set([2, 3, 4])
    const bytes = new Uint8Array([1, 2, 3, 4, 5])
    const forms = [
      Buffer.from([2, 3, 4]),
      bytes.subarray(1, 4),
      new DataView(bytes.buffer, 1, 3),
      new Uint8Array([2, 3, 4]).buffer,
      shared,
      shared.buffer
    ]
    for (const form of forms) {
      const output = await plugin.call('echo', form)
      expect([...output.bytes()]).toEqual([2, 3, 4])
    }
  })

  test('10 MB go in and come back', async () => {
    const plugin = await start()
    const input = Buffer.alloc(10_000_000, 'extism')
    const output = await plugin.call('echo', input)
    expect(Buffer.compare(Buffer.from(output.arrayBuffer()), input)).toBe(0)
  })

  test('no input, null and an empty string are an empty input; an output that is set is not null, even if it is empty', async () => {
    const plugin = await start()
    for (const input of [undefined, null, '', new Uint8Array()]) {
      const output = await plugin.call('echo', input)
      expect([output instanceof PluginOutput, output.byteLength, output.text(), output.bytes(), output.buffer.byteLength]).toEqual([true, 0, '', new Uint8Array(), 0])
      expect(plugin.callSync('echo', input).byteLength).toBe(0)
    }
    expect(await plugin.call('silent', 'something')).toBeNull()
  })

  test('the output is a read-only DataView that parses JSON', async () => {
    const plugin = await start()
    const output = await plugin.call('echo', '{"answer": 42}')
    expect(output).toBeInstanceOf(PluginOutput)
    expect(output).toBeInstanceOf(DataView)
    expect(output.json()).toEqual({ answer: 42 })
    expect(output.getUint8(0)).toBe('{'.charCodeAt(0))
    expect(() => output.setUint8(0, 1)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('read-only: setUint8') }))
  })

  test('outputs of all lengths come back unchanged, also from concurrent calls', async () => {
    const plugin = await start()
    const lengths = [1, 8, 1_023, 1_024, 1_025, 8_191, 8_192, 8_193, 65_536, 1_048_575, 1_048_576, 3_000_000]
    const inputs = lengths.map((length) => Buffer.alloc(length, String(length)))
    const outputs = await Promise.all([...inputs, ...inputs].map((input) => plugin.call('echo', input)))
    outputs.forEach((output, i) => {
      expect(output.byteLength).toBe(lengths[i % lengths.length])
      expect(Buffer.compare(output.bytes(), inputs[i % lengths.length])).toBe(0)
    })
  })

  test('an output\'s buffer holds nothing but this output, nor does that of its bytes', async () => {
    const plugin = await start()
    const [one, two] = await Promise.all([plugin.call('echo', 'one'), plugin.call('echo', 'the other')])
    for (const [output, text] of [[one, 'one'], [two, 'the other']]) {
      expect(Buffer.from(output.buffer).toString()).toBe(text)
      expect(output.arrayBuffer()).toBe(output.buffer)
      expect(output.byteOffset).toBe(0)
      expect(Buffer.from(output.buffer, output.byteOffset, output.byteLength).toString()).toBe(text)
      expect(new TextDecoder().decode(output)).toBe(text)
      expect(Buffer.from(output.bytes()).toString()).toBe(text)
      expect(Buffer.from(output.bytes().buffer).toString()).toBe(text)
    }
    // What both share cannot be taken away from either.
    const bytes = one.bytes()
    expect(structuredClone(bytes, { transfer: [bytes.buffer] })).toHaveLength(3)
    expect(structuredClone(one.buffer, { transfer: [one.buffer] }).byteLength).toBe(3)
    expect([one.text(), two.text()]).toEqual(['one', 'the other'])
    const large = await plugin.call('echo', Buffer.alloc(100_000))
    expect(large.bytes().buffer).toBe(large.buffer)
  })

  test('an output keeps its bytes during later calls', async () => {
    const plugin = await start()
    const outputs = []
    for (let i = 0; i < 3_000; i++) outputs.push(await plugin.call('echo', `output ${i}`))
    outputs.forEach((output, i) => expect(output.text()).toBe(`output ${i}`))
  })

  test('a function without a result works like one that returns 0', async () => {
    const plugin = await start()
    expect((await plugin.call('echo_without_result', 'hello')).text()).toBe('hello')
  })

  for (const input of [42, true, {}, [], Symbol('x'), 10n]) {
    test(`a ${Array.isArray(input) ? 'array' : typeof input} as the input is refused`, async () => {
      const plugin = await start()
      const call = plugin.call('echo', input)
      await expect(call).rejects.toMatchObject({ name: 'TypeError', code: 'INVALID_ARGUMENT' })
    })
  }

  test('the configuration is read by the plugin', async () => {
    const plugin = await start({ config: { greeting: 'hello' } })
    expect((await plugin.call('read_config', 'greeting')).text()).toBe('hello')
    expect((await plugin.call('read_config', 'nothing')).byteLength).toBe(0)
  })
})

describe('a call that fails', () => {
  test('is rejected with a real Error and the plugin\'s own message', async () => {
    const plugin = await start()
    const error = await plugin.call('fail', 'no more tea').catch((error) => error)
    expect(error).toBeInstanceOf(Error)
    expect(error).toMatchObject({ code: 'PLUGIN_ERROR', message: 'Plugin-originated error: no more tea' })
  })

  test('by a code other than 0 without a message is an error too', async () => {
    const plugin = await start()
    await expect(plugin.call('return_three')).rejects.toMatchObject({
      code: 'PLUGIN_ERROR',
      message: expect.stringContaining('3')
    })
  })

  test('keeps the plugin\'s state when the plugin itself reported the error', async () => {
    const plugin = await start()
    await plugin.call('count')
    await expect(plugin.call('fail', 'x')).rejects.toMatchObject({ code: 'PLUGIN_ERROR' })
    expect((await plugin.call('count')).getUint8(0)).toBe(2)
  })

  for (const name of ['trap', 'divide_by_zero', 'recurse']) {
    test(`by ${name} is a TRAP, and the next call gets a fresh instance`, async () => {
      const plugin = await start()
      await plugin.call('count')
      await expect(plugin.call(name)).rejects.toMatchObject({ code: 'TRAP' })
      expect((await plugin.call('count')).getUint8(0)).toBe(1)
    })
  }

  test('by its time limit is a TIMEOUT, and the next call works', async () => {
    const plugin = await start({ timeoutMs: 500 })
    await expect(plugin.call('loop_for_ever')).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect((await plugin.call('echo', 'still here')).text()).toBe('still here')
  })

  test('with "timeout" as the plugin\'s own message is not a TIMEOUT', async () => {
    const plugin = await start({ timeoutMs: 60_000 })
    await expect(plugin.call('fail', 'timeout')).rejects.toMatchObject({ code: 'PLUGIN_ERROR' })
  })

  test('by a time limit leaves a call on another instance alone', async () => {
    const plugin = await start({ timeoutMs: 1_000, instances: 2 })
    let isOver = false
    const looping = plugin.call('loop_for_ever').finally(() => { isOver = true })
    looping.catch(() => {})
    // One short call after the other, so that one is running when the other's time is over.
    async function computeUntilOver (calls) {
      await plugin.call('compute', new Uint8Array([1]))
      return isOver ? calls : computeUntilOver(calls + 1)
    }
    await expect(computeUntilOver(1)).resolves.toBeGreaterThan(1)
    await expect(looping).rejects.toMatchObject({ code: 'TIMEOUT' })
  })

  test('by memory is OUT_OF_MEMORY, and the next call works', async () => {
    const plugin = await start({ memory: { maxPages: 64 } })
    await expect(plugin.call('grow_for_ever')).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
    expect((await plugin.call('echo', 'still here')).text()).toBe('still here')
  })

  test('has a limit of memory by default', async () => {
    const plugin = await start()
    await expect(plugin.call('grow_for_ever')).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
  })

  test('because its input does not fit into the memory leaves the plugin working', async () => {
    const plugin = await start({ memory: { maxPages: 16 } })
    await expect(plugin.call('echo', Buffer.alloc(2 << 20))).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
    expect((await plugin.call('echo', 'still here')).text()).toBe('still here')
  })

  test('because a function does not exist names the function', async () => {
    const plugin = await start()
    for (const name of ['no_such_function', 'takes_an_argument', '', '__proto__']) {
      await expect(plugin.call(name)).rejects.toMatchObject({
        code: 'FUNCTION_NOT_FOUND',
        message: expect.stringContaining(`Plugin error: function "${name}" does not exist; there are "`)
      })
    }
  })

  for (const name of [undefined, null, 42, {}]) {
    test(`because ${String(name)} is not a name is an INVALID_ARGUMENT`, async () => {
      const plugin = await start()
      await expect(plugin.call(name)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    })
  }
})

test('functionExists tells whether a function can be called', async () => {
  const plugin = await start()
  expect(await plugin.functionExists('echo')).toBe(true)
  expect(await plugin.functionExists('echo_without_result')).toBe(true)
  expect(await plugin.functionExists('takes_an_argument')).toBe(false)
  expect(await plugin.functionExists('no_such_function')).toBe(false)
  expect(await plugin.functionExists(undefined)).toBe(false)
})

describe('many calls at once', () => {
  test('1,000 on 2 instances all come back with their own output', async () => {
    const plugin = await start({ instances: 2 })
    const inputs = Array.from({ length: 1_000 }, (_, index) => `call ${index}`)
    const outputs = await Promise.all(inputs.map((input) => plugin.call('echo', input)))
    expect(outputs.map((output) => output.text())).toEqual(inputs)
  })

  test('one instance, the default, sees each call after the other, in order', async () => {
    const plugin = await start()
    const outputs = await Promise.all(Array.from({ length: 100 }, () => plugin.call('count')))
    expect(outputs.map((output) => output.getUint8(0))).toEqual(Array.from({ length: 100 }, (_, index) => index + 1))
  })

  test('one more than maxQueue is refused, and the others are not', async () => {
    const plugin = await start({ maxQueue: 10 })
    const calls = Array.from({ length: 11 }, () => plugin.call('compute', new Uint8Array([4])))
    const results = await Promise.allSettled(calls)
    expect(results.slice(0, 10).every(({ status }) => status === 'fulfilled')).toBe(true)
    expect(results[10].reason).toMatchObject({ code: 'QUEUE_FULL' })
    expect((await plugin.call('echo', 'room again')).text()).toBe('room again')
  })

  test('the event loop turns while calls are awaited one after the other', async () => {
    const plugin = await start()
    const calls = 4_000
    let turns = 0
    let isOver = false
    const turn = () => {
      turns++
      if (!isOver) setImmediate(turn)
    }
    setImmediate(turn)
    for (let i = 0; i < calls; i++) await plugin.call('echo', `call ${i}`)
    isOver = true
    // Results may be there at once, but not so many in a row that nothing else gets its turn.
    expect(turns).toBeGreaterThan(calls / 100)
  })

  test('calls of several plugins, some alone and some at once, all come back with their own output', async () => {
    const plugins = [await start(), await start({ instances: 2 }), await start()]
    const one = async (plugin, name) => {
      for (let i = 0; i < 300; i++) {
        expect((await plugin.call('echo', `${name} ${i}`)).text()).toBe(`${name} ${i}`)
        if (i % 50 === 0) {
          await Promise.all(plugins.map(async (other, j) => {
            expect((await other.call('echo', `${name} ${i} ${j}`)).text()).toBe(`${name} ${i} ${j}`)
          }))
        }
      }
    }
    await one(plugins[0], 'alone')
    await Promise.all(plugins.map((plugin, i) => one(plugin, `plugin ${i}`)))
  })

  test('the event loop turns while a plugin computes', async () => {
    const plugin = await start()
    let turns = 0
    const ticking = setInterval(() => { turns++ }, 1)
    const turnsWhileRunning = await plugin.call('compute', new Uint8Array([40])).then(() => turns)
    clearInterval(ticking)
    expect(turnsWhileRunning).toBeGreaterThan(3)
  })
})
