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

module.exports = { assemble, guest }
