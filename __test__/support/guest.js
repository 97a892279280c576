'use strict'

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const wabt = require('wabt')

/** Assembles WebAssembly text. */
async function assemble (text) {
  const { parseWat } = await wabt()
  const module = parseWat('guest.wat', text)
  try {
    return Buffer.from(module.toBinary({ write_debug_names: true }).buffer)
  } finally {
    module.destroy()
  }
}

/** The bytes of a guest of `__test__/guests`. */
function guest (name) {
  return assemble(readFileSync(join(__dirname, '..', 'guests', `${name}.wat`), 'utf8'))
}

/** A module that takes the compiler about a second for each function: hundreds of values live through loops inside one another. */
function slowToCompile (functions = 2) {
  const LOCALS = 400
  const LOOPS = 50
  const each = (count, text) => Array.from({ length: count }, (_, index) => text(index)).join(' ')
  const body = `
    ${each(LOOPS, () => 'loop')}
      ${each(LOCALS, (index) => `(local.set ${index} (i32.add (local.get ${index}) (local.get ${(index * 7 + 1) % LOCALS})))`)}
    ${each(LOOPS, (index) => `(br_if 0 (local.get ${index})) end`)}
    ${each(LOCALS, (index) => `(call $take (local.get ${index}))`)}`
  return assemble(`(module
    (func $take (param i32))
    ${each(functions, () => `(func (local ${each(LOCALS, () => 'i32')}) ${body})`)}
    (func (export "run")))`)
}

module.exports = { assemble, guest, slowToCompile }
