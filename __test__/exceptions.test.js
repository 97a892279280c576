'use strict'

// Exceptions of WebAssembly. The assembler of the other tests does not know them in their final form, so modules are
// written as bytes here.

const { pluginsOfEachTest } = require('./support/plugins.js')

const open = pluginsOfEachTest()

const I32 = 0x7F
const EXNREF = 0x69
const END = 0x0B
const i32Const = (value) => [0x41, value]
const throwTag = (tag) => [0x08, tag]
const THROW_REF = 0x0A
const call = (number) => [0x10, number]
const block = (type, ...body) => [0x02, type, ...body, END]
const tryTable = (type, clause, ...body) => [0x1F, type, 1, ...clause, ...body, END]
const CATCH = 0
const CATCH_ALL_REF = 3

const name = (text) => [text.length, ...Buffer.from(text)]
const vector = (items) => [items.length, ...items.flat()]
const section = (id, items) => items.length === 0 ? [] : [id, vector(items).length, ...vector(items)]

/** Types 0: (i32) -> (), 1: () -> (i32), 2: () -> (). Functions have no locals. */
function moduleOf ({ imports = [], tags = [], functions, exports }) {
  const bodies = functions.map(({ body }) => [body.length + 2, 0, ...body, END])
  return Buffer.from([
    0, 0x61, 0x73, 0x6D, 1, 0, 0, 0,
    ...section(1, [[0x60, 1, I32, 0], [0x60, 0, 1, I32], [0x60, 0, 0]]),
    ...section(2, imports.map(([module, field, ...what]) => [...name(module), ...name(field), ...what])),
    ...section(3, functions.map(({ type }) => [type])),
    ...section(13, tags.map((type) => [0, type])),
    ...section(7, exports.map(([field, ...what]) => [...name(field), ...what])),
    ...section(10, bodies)
  ])
}

const FUNCTION = 0
const TAG = 4

test('a guest catches what it throws', async () => {
  const plugin = await open(moduleOf({
    tags: [0],
    functions: [{ type: 1, body: block(I32, ...tryTable(I32, [CATCH, 0, 0], ...i32Const(42), ...throwTag(0))) }],
    exports: [['run', FUNCTION, 0]]
  }))
  await expect(plugin.call('run')).rejects.toMatchObject({ code: 'PLUGIN_ERROR', returnCode: 42 })
})

test('an exception passes through a reference, and to another module with its tag', async () => {
  const library = moduleOf({
    tags: [0],
    functions: [{ type: 2, body: [...i32Const(7), ...throwTag(0)] }],
    exports: [['fail', FUNCTION, 0], ['oops', TAG, 0]]
  })
  const rethrow = [...block(EXNREF, ...tryTable(0x40, [CATCH_ALL_REF, 0], ...call(0)), 0x00), THROW_REF]
  const main = moduleOf({
    imports: [['library', 'fail', FUNCTION, 2], ['library', 'oops', TAG, 0, 0]],
    functions: [{ type: 1, body: block(I32, ...tryTable(I32, [CATCH, 0, 0], ...rethrow)) }],
    exports: [['run', FUNCTION, 1]]
  })
  const plugin = await open({ wasm: [{ data: library, name: 'library' }, { data: main }] })
  await expect(plugin.call('run')).rejects.toMatchObject({ code: 'PLUGIN_ERROR', returnCode: 7 })
})

test('an uncaught exception is a trap, and the plugin keeps working', async () => {
  const plugin = await open(moduleOf({
    tags: [0],
    functions: [{ type: 2, body: [...i32Const(1), ...throwTag(0)] }, { type: 1, body: i32Const(5) }],
    exports: [['fail', FUNCTION, 0], ['five', FUNCTION, 1]]
  }))
  for (let times = 0; times < 3; times++) {
    await expect(plugin.call('fail')).rejects.toMatchObject({ code: 'TRAP', message: expect.stringContaining('exception') })
    await expect(plugin.call('five')).rejects.toMatchObject({ returnCode: 5 })
  }
})

test('a guest cannot catch the end of its call', async () => {
  const loop = [0x03, 0x40, 0x0C, 0, END]
  const catching = (...body) => ({ type: 2, body: block(EXNREF, ...tryTable(0x40, [CATCH_ALL_REF, 0], ...body), 0x0F).concat(0x1A) })
  const plugin = await open(moduleOf({
    tags: [0],
    functions: [catching(...loop), catching(0x00)],
    exports: [['loop', FUNCTION, 0], ['trap', FUNCTION, 1]]
  }), { timeoutMs: 50 })
  await expect(plugin.call('loop')).rejects.toMatchObject({ code: 'TIMEOUT' })
  await expect(plugin.call('trap')).rejects.toMatchObject({ code: 'TRAP' })
})

test('the exceptions of the proposal\'s first form are refused', async () => {
  const legacy = moduleOf({
    tags: [0],
    // try, catch_all
    functions: [{ type: 2, body: [0x06, 0x40, 0x19, END] }],
    exports: [['run', FUNCTION, 0]]
  })
  await expect(open(legacy)).rejects.toMatchObject({ code: 'INVALID_WASM', message: expect.stringContaining('legacy') })
})
