'use strict'

const { AsyncLocalStorage } = require('node:async_hooks')
const { once } = require('node:events')
const { setTimeout: sleep } = require('node:timers/promises')
const { CallContext, MemoryStore } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')

const open = pluginsOfEachTest()

let wasm
beforeAll(async () => { wasm = await guest('asking') })

const none = () => {}
const numbers = { mix: none, i32: none, f32: none, nothing: none }

/** As `Promise.withResolvers`, which Node 20 does not have. */
function withResolvers () {
  let resolve
  const promise = new Promise((_resolve) => { resolve = _resolve })
  return { promise, resolve }
}

/** A plugin whose guest asks `ask`. */
function asking (ask, options = {}) {
  return open(wasm, { ...options, functions: { 'extism:host/user': { ask }, numbers, ...options.functions } })
}

describe('a host function in JavaScript', () => {
  test('reads the guest\'s arguments, and returns a block', async () => {
    let read
    const plugin = await asking((context, offset) => {
      read = context.read(offset).text()
      return context.store('wow okay then')
    })
    expect((await plugin.call('ask', '{"count": 3}')).text()).toBe('wow okay then')
    expect(read).toBe('{"count": 3}')
  })

  test('may return a string or bytes', async () => {
    const plugin = await asking((context, offset) => context.read(offset).text() === 'bytes' ? Buffer.from([1, 2, 255]) : 'text 👋')
    expect((await plugin.call('ask', 'text')).text()).toBe('text 👋')
    expect([...(await plugin.call('ask', 'bytes')).bytes()]).toEqual([1, 2, 255])
  })

  test('may be asynchronous, while the event loop keeps turning', async () => {
    const plugin = await asking(async (context) => {
      // Never happens if the call stops the event loop.
      for (let turn = 0; turn < 5; turn++) await sleep(1)
      return context.store('it works')
    })
    expect((await plugin.call('ask')).text()).toBe('it works')
  })

  test('may return anything that can be awaited', async () => {
    const plugin = await asking(() => ({ then (resolve) { resolve('thenable') } }))
    expect((await plugin.call('ask')).text()).toBe('thenable')
  })

  test('gets and returns all types of numbers', async () => {
    let seen
    const plugin = await open(wasm, {
      functions: {
        'extism:host/user': { ask: none },
        numbers: {
          mix (context, ...args) {
            seen = args
            return 0.1
          },
          i32: (context, number) => -number + 4,
          f32: (context, number) => number * 2,
          nothing: () => 'ignored'
        }
      }
    })
    expect((await plugin.call('mix')).getFloat64(0, true)).toBe(0.1)
    expect(seen).toEqual([-7, -9n, 1.5, 2.25])
    await expect(plugin.call('small_numbers')).rejects.toMatchObject({ code: 'PLUGIN_ERROR', message: expect.stringContaining('code 4') })
  })

  test('is found under `env` and `extism:host/user` alike', async () => {
    const imports = await assemble(`(module
      (import "env" "one" (func $one (result i32)))
      (import "extism:host/user" "two" (func $two (result i32)))
      (func (export "f") (result i32) (i32.add (call $one) (call $two))))`)
    const plugin = await open(imports, { functions: { 'extism:host/user': { one: () => 1 }, env: { two: () => 2 } } })
    await expect(plugin.call('f')).rejects.toThrow('code 3')
  })

  test('overrides a built-in one, which is used without it', async () => {
    const imports = await assemble(`(module
      (import "extism:host/user" "hostMemoryGet" (func $get (param i64) (result i64)))
      (import "extism:host/env" "length" (func $length (param i64) (result i64)))
      (import "extism:host/env" "input_offset" (func $input (result i64)))
      (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
      (func (export "get") (local $value i64)
        (local.set $value (call $get (call $input)))
        (call $output_set (local.get $value) (call $length (local.get $value)))))`)
    const store = new MemoryStore([['key', 'of the store']])
    const ours = await open(imports, { store })
    const theirs = await open(imports, { store, functions: { 'extism:host/user': { hostMemoryGet: () => 'of JavaScript' } } })
    expect((await ours.call('get', 'key')).text()).toBe('of the store')
    expect((await theirs.call('get', 'key')).text()).toBe('of JavaScript')
  })

  test('is called by all instances, 1,000 calls at once', async () => {
    let most = 0
    let running = 0
    const plugin = await asking(async (context, offset) => {
      most = Math.max(most, ++running)
      await sleep(1)
      running--
      return context.read(offset).bytes()
    }, { instances: 2, eager: true })
    const outputs = await Promise.all(Array.from({ length: 1_000 }, (_, number) => plugin.call('ask', `${number}`)))
    expect(outputs.map((output) => Number(output.text()))).toEqual(Array.from({ length: 1_000 }, (_, number) => number))
    expect(most).toBe(2)
  })

  test('is called often within one call', async () => {
    let calls = 0
    const plugin = await asking(() => { calls++ })
    await plugin.call('ask_often', Buffer.from([200]))
    expect(calls).toBe(200)
  })

  test.each([
    ['at once', () => 'again'],
    ['with a promise', async () => 'again']
  ])('that answers %s lets the event loop turn while it is called again and again', async (_, ask) => {
    let inThisTurn = 0
    let most = 0
    const turned = () => {
      inThisTurn = 0
      turn = setImmediate(turned)
    }
    let turn = setImmediate(turned)
    const plugin = await asking(() => {
      most = Math.max(most, ++inThisTurn)
      for (const start = performance.now(); performance.now() - start < 0.05;);
      return ask()
    })
    for (let calls = 0; calls < 10; calls++) await plugin.call('ask_often', Buffer.from([255]))
    clearImmediate(turn)
    expect(most).toBeLessThan(20)
  })

  test('answers with blocks of any length', async () => {
    const plugin = await asking((context, offset) => {
      const [how, length] = context.read(offset).text().split(' ')
      const text = 'ö'.repeat(length)
      const answers = { text, bytes: Buffer.from(text), stored: text && context.store(text), storedBytes: context.store(Buffer.from(text)) }
      return answers[how]
    })
    for (const how of ['text', 'bytes', 'stored', 'storedBytes']) {
      for (const length of [1, 2_730, 2_731, 4_096, 4_097, 100_000]) {
        expect((await plugin.call('ask', `${how} ${length}`)).text()).toBe('ö'.repeat(length))
      }
    }
  })

  test('gets arguments of any length', async () => {
    const plugin = await asking((context, offset) => context.read(offset).bytes())
    for (const length of [1, 1_000, 8_192, 65_536, 65_537, 3_000_000]) {
      const input = Buffer.alloc(length, 'abc')
      expect(Buffer.compare((await plugin.call('ask', input)).bytes(), input)).toBe(0)
    }
  })

  test('runs in the asynchronous context of its call', async () => {
    const storage = new AsyncLocalStorage()
    const plugin = await asking(() => storage.getStore())
    const outputs = await Promise.all(['one', 'two'].map((name) => storage.run(name, () => plugin.call('ask'))))
    expect(outputs.map((output) => output.text())).toEqual(['one', 'two'])
  })

  test('is called during the initialization of an instance', async () => {
    const text = `(module
      (import "extism:host/user" "begin" (func $begin (result i64)))
      (func (export "_initialize") (drop (call $begin)))
      (func (export "f")))`
    const calls = []
    const plugin = await open(await assemble(text), { functions: { 'extism:host/user': { begin: async (context) => { calls.push(context.hostContext()) } } } })
    await plugin.call('f')
    expect(calls).toEqual([undefined])
    const failing = open(await assemble(text), { functions: { 'extism:host/user': { begin () { throw new RangeError('not today') } } } })
    await expect(failing).rejects.toThrow(new RangeError('not today'))
  })
})

describe('an error of a host function', () => {
  test('rejects the call, and the plugin keeps working', async () => {
    const thrown = new RangeError('never')
    const plugin = await asking(() => { throw thrown })
    await plugin.call('count')
    const error = await plugin.call('ask').catch((error) => error)
    expect(error).toBe(thrown)
    // In a new instance: what the guest had in its memory is gone.
    expect([...(await plugin.call('count')).bytes()]).toEqual([1])
    expect(plugin.stats().replaced.hostFunctionError).toBe(1)
  })

  test('may be any value, and come late', async () => {
    for (const thrown of [undefined, null, 'a string', { an: 'object' }]) {
      const plugin = await asking(async () => {
        await sleep(1)
        throw thrown
      })
      const outcome = await plugin.call('ask').then(() => 'resolved', (error) => ({ error }))
      expect(outcome).toEqual({ error: thrown })
    }
  })

  test('does not change variables', async () => {
    const plugin = await asking((context) => {
      context.setVariable('kept', 'a value')
      throw new Error('no')
    })
    await expect(plugin.call('ask')).rejects.toThrow('no')
    expect((await plugin.call('variable', 'kept')).text()).toBe('a value')
  })

  test('includes a return value of the wrong type', async () => {
    const plugin = await asking(() => ({ no: 'offset' }))
    await expect(plugin.call('ask')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('must return') })
  })
})

describe('the context of a host function', () => {
  test('has the context of the call', async () => {
    const seen = []
    const plugin = await asking(async (context) => {
      await sleep(2)
      seen.push(context.hostContext())
    }, { instances: 2 })
    const contexts = [{ hi: 'there' }, 'two', 3, undefined]
    await Promise.all(contexts.map((context) => plugin.call('ask', '', context)))
    expect(new Set(seen)).toEqual(new Set(contexts))
    expect(seen).toContain(contexts[0])
  })

  test('allocates, measures and reads', async () => {
    let seen
    const plugin = await asking((context, offset) => {
      const block = context.alloc(10)
      seen = [context.length(offset), context.length(block), [...context.read(block).bytes()], context.store(''), context.read(12345n), context.length(12345n), context.read(0n), context.read(-1n)]
      return block
    })
    const output = await plugin.call('ask', 'seven b')
    expect(seen).toEqual([7n, 10n, Array(10).fill(0), 0n, null, 0n, null, null])
    expect(output.byteLength).toBe(10)
  })

  test('sets an error', async () => {
    const plugin = await asking((context, offset) => {
      context.setError(new Error('first'))
      context.setError(context.read(offset)?.text())
    })
    await expect(plugin.call('ask', 'bad luck')).rejects.toMatchObject({ code: 'PLUGIN_ERROR', message: 'Plugin-originated error: bad luck' })
    expect(await plugin.call('ask')).toBeNull()
  })

  test('has the variables of the plugin', async () => {
    const seen = []
    const plugin = await asking((context) => {
      seen.push(context.getVariable('v')?.text() ?? null)
      context.setVariable('v', 'set')
      context.setVariable('w', Buffer.from('bytes'))
      seen.push(context.getVariable('v').text(), context.getVariable('w').text())
      context.deleteVariable('v')
      seen.push(context.getVariable('v'))
    })
    await plugin.call('ask')
    expect(seen).toEqual([null, 'set', 'bytes', null])
    expect((await plugin.call('variable', 'w')).text()).toBe('bytes')
  })

  test('cannot be used when the function has returned', async () => {
    let kept
    const plugin = await asking((context) => { kept = context })
    await plugin.call('ask')
    const uses = [() => kept.alloc(1), () => kept.store('a'), () => kept.read(100n), () => kept.length(100n), () => kept.setError('a'), () => kept.getVariable('a'), () => kept.setVariable('a', 'a'), () => kept.deleteVariable('a')]
    for (const use of uses) expect(use).toThrow(expect.objectContaining({ code: 'CONTEXT_ENDED' }))
  })

  test('reads nothing after the plugin has been reset', async () => {
    let kept
    let offsets
    const plugin = await asking((context, offset) => {
      kept = context
      offsets = [offset, context.store('wow okay then')]
      return offsets[1]
    })
    expect((await plugin.call('ask', 'hello')).text()).toBe('wow okay then')
    expect(await plugin.reset()).toBe(true)
    expect(offsets).not.toContain(0n)
    expect(offsets.map((offset) => kept.read(offset))).toEqual([null, null])
    expect(offsets.map((offset) => kept.length(offset))).toEqual([0n, 0n])
  })

  test('rejects invalid arguments', async () => {
    const refused = []
    const plugin = await asking((context) => {
      const uses = [() => context.alloc(-1), () => context.alloc('1'), () => context.store({}), () => context.read('a'), () => context.setVariable(1, 'a'), () => context.setVariable('a', 1), () => context.setError(5)]
      for (const use of uses) {
        try {
          use()
        } catch (error) {
          refused.push([error.code, error.message])
        }
      }
    })
    await plugin.call('ask')
    expect(refused).toEqual([
      'the size of a block must be a non-negative whole number, not -1',
      'the size of a block must be a non-negative whole number, not a string',
      'the content of a block must be a string or bytes, not an instance of Object',
      'an offset must be a bigint, not a string',
      'the name of a variable must be a string, not a number',
      'the value of a variable must be a string or bytes, not a number',
      'an error must be a string or bytes, not a number'
    ].map((message) => ['INVALID_ARGUMENT', message]))
    expect(() => new CallContext()).toThrow('CallContext cannot be constructed')
  })

  test('ends with a call whose guest has no memory for its block', async () => {
    let inside
    const plugin = await asking((context) => {
      try {
        context.alloc(1 << 30)
      } catch (error) {
        inside = error.code
        throw error
      }
    }, { memory: { maxPages: 64 } })
    await expect(plugin.call('ask')).rejects.toMatchObject({ code: expect.stringMatching(/OUT_OF_MEMORY|CONTEXT_ENDED/) })
    expect(inside).toMatch(/OUT_OF_MEMORY|CONTEXT_ENDED/)
    expect((await plugin.call('count')).byteLength).toBe(1)
  })
})

describe('a call that waits for a host function', () => {
  test('ends at once when it is aborted, and the late answer is dropped', async () => {
    let release
    const released = new Promise((resolve) => { release = resolve })
    let late
    const plugin = await asking(async (context) => {
      await released
      late = await Promise.resolve().then(() => context.store('late')).catch((error) => error.code)
      return 'late'
    })
    const controller = new AbortController()
    const call = plugin.call('ask', '', undefined, { signal: controller.signal })
    await sleep(20)
    controller.abort(new Error('enough'))
    await expect(call).rejects.toThrow('enough')
    expect((await plugin.call('count')).byteLength).toBe(1)
    release()
    await sleep(20)
    expect(late).toBe('CONTEXT_ENDED')
    expect(plugin.stats().abandonedThreads).toBe(0)
  })

  test('ends at its deadline', async () => {
    const plugin = await asking(() => new Promise(() => {}), { timeoutMs: 50 })
    await expect(plugin.call('ask')).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect((await plugin.call('count')).byteLength).toBe(1)
    expect(plugin.stats().abandonedThreads).toBe(0)
  })

  test('keeps no thread while a slow store in JavaScript is waited for: by a deadline, a signal, or when the plugin is closed', async () => {
    const slowStore = { get: () => sleep(60_000, undefined, { ref: false }) }
    const plugin = await asking(async (context) => slowStore.get('key'), { timeoutMs: 100, instances: 3, eager: true })
    const controller = new AbortController()
    const reason = new Error('nobody waits')
    const calls = Promise.allSettled([
      plugin.call('ask'), plugin.call('ask', '', undefined, { signal: controller.signal, timeoutMs: 60_000 })
    ])
    await sleep(20)
    controller.abort(reason)
    const [late, aborted] = await calls
    expect(late.reason).toMatchObject({ code: 'TIMEOUT' })
    expect(aborted.reason).toBe(reason)
    // Longer than an interrupted thread may take before it is abandoned.
    await sleep(500)
    expect(plugin.stats()).toMatchObject({ abandonedThreads: 0, replaced: { interrupted: 2 } })
    const last = plugin.call('ask').catch((error) => error.code)
    await plugin.close()
    expect(await last).toBe('TIMEOUT')
    expect(plugin.stats()).toMatchObject({ abandonedThreads: 0, instances: 0 })
  })

  test('leaks nothing if its function never returns', async () => {
    const plugin = await asking(() => new Promise(() => {}), { timeoutMs: 20 })
    await Promise.allSettled(Array.from({ length: 3 }, () => plugin.call('ask')))
    expect(plugin.callSync('count').byteLength).toBe(1)
  })

  describe('tells the function by context.signal', () => {
    /** A plugin whose host function waits for its signal; `asked` resolves to that once it runs, `reason` to why it was aborted. */
    async function waiting (options) {
      const asked = withResolvers()
      const reason = withResolvers()
      const plugin = await asking(({ signal }) => new Promise(() => {
        signal.addEventListener('abort', () => reason.resolve(signal.reason))
        asked.resolve(signal)
      }), options)
      return { plugin, asked: asked.promise, reason: reason.promise }
    }

    test('of a deadline', async () => {
      const { plugin, reason } = await waiting({ timeoutMs: 50 })
      const error = await plugin.call('ask').catch((error) => error)
      expect(await reason).toMatchObject({ code: 'TIMEOUT', message: error.message, function: 'ask' })
    })

    test('of an abort, at once and with its reason', async () => {
      const { plugin, asked } = await waiting()
      const abort = new AbortController()
      const call = plugin.call('ask', '', undefined, { signal: abort.signal })
      const signal = await asked
      expect(signal.aborted).toBe(false)
      const thrown = new Error('enough')
      abort.abort(thrown)
      expect(signal.reason).toBe(thrown)
      await expect(call).rejects.toBe(thrown)
    })

    test('of a plugin that is closed', async () => {
      const { plugin, asked, reason } = await waiting()
      const call = plugin.call('ask')
      await asked
      const closed = plugin.close({ timeoutMs: 0 })
      const error = await call.catch((error) => error)
      expect(await reason).toMatchObject({ code: error.code })
      await closed
    })

    describe('of an initialization', () => {
      /** The options of a plugin whose `_initialize` waits for its signal from the nth time on; `asked` resolves to that signal. */
      function beginning (times) {
        const asked = withResolvers()
        const begin = ({ signal }) => --times > 0 ? undefined : new Promise(() => asked.resolve(signal))
        return { asked: asked.promise, functions: { 'extism:host/user': { begin } } }
      }

      const text = `(module
        (import "extism:host/user" "begin" (func $begin (result i64)))
        (func (export "_initialize") (drop (call $begin)))
        (func (export "trap") unreachable))`

      const aborted = (signal) => signal.aborted ? undefined : once(signal, 'abort')

      test('whose plugin is not opened, with the reason of its signal', async () => {
        const { asked, functions } = beginning(1)
        const abort = new AbortController()
        const opened = open(await assemble(text), { signal: abort.signal, functions })
        const signal = await asked
        const thrown = new Error('enough')
        abort.abort(thrown)
        await expect(opened).rejects.toBe(thrown)
        expect(signal.reason).toBe(thrown)
      })

      test.each(['openTimeoutMs', 'timeoutMs'])('whose plugin is not opened within %s', async (limit) => {
        const { asked, functions } = beginning(1)
        const error = await open(await assemble(text), { [limit]: 500, functions }).catch((error) => error)
        expect(error.code).toBe('TIMEOUT')
        const signal = await asked
        await aborted(signal)
        expect(signal.reason).toMatchObject({ code: 'TIMEOUT' })
      })

      test('of a later instance that takes too long', async () => {
        const { asked, functions } = beginning(2)
        const plugin = await open(await assemble(text), { timeoutMs: 100, functions })
        await expect(plugin.call('trap')).rejects.toMatchObject({ code: 'TRAP' })
        plugin.call('trap').catch(() => {})
        const signal = await asked
        await aborted(signal)
        expect(signal.reason).toMatchObject({ code: 'TIMEOUT' })
      })
    })

    test('and not of anything else', async () => {
      let context
      const signals = []
      const plugin = await asking(async (own) => {
        context = own
        signals.push(own.signal)
        await sleep(1)
        expect(own.signal).toBe(signals.at(-1))
        return 'done'
      })
      await plugin.call('ask')
      const abort = new AbortController()
      await plugin.call('ask', '', undefined, { signal: abort.signal })
      abort.abort()
      await plugin.close()
      expect(signals.map(({ aborted }) => aborted)).toEqual([false, false])
      expect(context.signal).toBe(signals[1])
    })

    test('if it is first read after the call has ended', async () => {
      let context
      const plugin = await asking((own) => { context = own })
      await plugin.call('ask')
      expect(context.signal.reason).toMatchObject({ code: 'CONTEXT_ENDED' })
    })

    test('whose listeners may call the plugin', async () => {
      const { plugin, asked } = await waiting({ timeoutMs: 50 })
      const call = plugin.call('ask')
      const signal = await asked
      const listener = jest.fn(() => plugin.callSync('count'))
      signal.addEventListener('abort', listener)
      await expect(call).rejects.toMatchObject({ code: 'TIMEOUT' })
      expect(listener).toHaveReturned()
    })
  })

  test('does not run the function if it has been aborted', async () => {
    let asked = 0
    const plugin = await asking(() => { asked++ })
    const controller = new AbortController()
    const call = plugin.call('ask', '', undefined, { signal: controller.signal })
    // The event loop stands still while the guest asks.
    const until = performance.now() + 20
    while (performance.now() < until);
    controller.abort()
    await expect(call).rejects.toMatchObject({ name: 'AbortError' })
    await plugin.call('count')
    expect(asked).toBe(0)
  })

  test('survives thenables of any kind', async () => {
    const kinds = [
      { get then () { throw new RangeError('getter') } },
      { then () { throw new RangeError('then') } },
      { then (resolve, reject) { reject(new RangeError('rejected')) } }
    ]
    for (const kind of kinds) {
      const plugin = await asking(() => kind)
      await expect(plugin.call('ask')).rejects.toThrow(RangeError)
    }
  })

  test('keeps close() waiting, and nothing else', async () => {
    const plugin = await asking(async () => {
      await sleep(30)
      return 'done'
    })
    const call = plugin.call('ask')
    await plugin.close()
    expect((await call).text()).toBe('done')
  })

  test('is rejected if it waits for itself', async () => {
    const plugin = await asking(() => plugin.call('count'))
    await expect(plugin.call('ask')).rejects.toMatchObject({ code: 'WOULD_DEADLOCK', message: 'plugin is not reentrant' })
  })

  test('may call its plugin if another instance is free', async () => {
    const plugin = await asking(async () => (await plugin.call('count')).bytes(), { instances: 2, eager: true })
    expect((await plugin.call('ask')).byteLength).toBe(1)
    // Two that wait for a third and a fourth: one of them is told.
    const outcomes = await Promise.allSettled([plugin.call('ask'), plugin.call('ask')])
    const failed = outcomes.filter(({ status }) => status === 'rejected')
    expect(failed.every(({ reason }) => reason.code === 'WOULD_DEADLOCK')).toBe(true)
  })
})

describe('callSync()', () => {
  test('runs synchronous host functions', async () => {
    const plugin = await asking((context, offset) => context.read(offset).text().toUpperCase())
    expect(plugin.callSync('ask', 'loud').text()).toBe('LOUD')
  })

  test('rejects asynchronous host functions', async () => {
    const plugin = await asking(async () => 'late')
    expect(() => plugin.callSync('ask')).toThrow(expect.objectContaining({ code: 'WOULD_DEADLOCK' }))
    expect((await plugin.call('ask')).text()).toBe('late')
  })

  test('throws the error of a host function', async () => {
    const plugin = await asking(() => { throw new RangeError('no') })
    expect(() => plugin.callSync('ask')).toThrow(new RangeError('no'))
  })

  test('does not wait for a call that waits for this thread', async () => {
    const plugin = await asking(async () => {
      await sleep(20)
      return 'later'
    })
    const call = plugin.call('ask')
    await sleep(10)
    expect(() => plugin.callSync('count')).toThrow(expect.objectContaining({ code: 'WOULD_DEADLOCK' }))
    expect((await call).text()).toBe('later')
  })
})

test.each([
  [1, 'functions must be an object'],
  [{ env: 1 }, 'functions["env"] must be an object'],
  [{ env: { f: 1 } }, 'functions["env"]["f"] must be a function'],
  [{ 'extism:host/env': { alloc: none } }, 'cannot be added to the namespace "extism:host/env"'],
  [{ 'extism-host:host': { take: none } }, 'cannot be added']
])('functions cannot be %p', async (functions, message) => {
  await expect(open(wasm, { functions })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) })
})

test('a block beyond the maximum size is rejected, and the guest keeps running', async () => {
  const plugin = await open(await assemble(`(module
    (import "extism:host/user" "ask" (func $ask (result i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "output_set" (func $output (param i64 i64)))
    (func (export "ask") (local $block i64)
      (local.set $block (call $ask))
      (call $output (local.get $block) (call $length (local.get $block)))))`), {
    functions: {
      'extism:host/user': {
        ask: (context) => [2 ** 31, 2n ** 31n, 2 ** 32, 2 ** 32 + 1, Number.MAX_SAFE_INTEGER].map((size) => {
          try {
            return String(context.alloc(size))
          } catch ({ code, message }) {
            return `${code}: ${message}`
          }
        }).join()
      }
    }
  })
  expect((await plugin.call('ask')).text().split(',').filter((part) => part.startsWith('OUT_OF_MEMORY: a block can have at most 2147483647 bytes'))).toHaveLength(5)
  expect(plugin.stats().replaced.trap).toBe(0)
})
