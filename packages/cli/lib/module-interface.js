'use strict'

// Reads the imports and exports of a WebAssembly module. `WebAssembly.Module` does not give their types, and has to
// compile the module first.

const { KERNEL_NAMESPACE: KERNEL, USER_NAMESPACE: USER, WASI_NAMESPACE: WASI } = require('extism-host/internal')

const KINDS = ['function', 'table', 'memory', 'global', 'tag']
const [TYPES, IMPORTS, FUNCTIONS, EXPORTS] = [1, 2, 3, 7]
const FUNCTION_TYPE = 0x60
const VALUE_TYPES = { 0x7F: 'i32', 0x7E: 'i64', 0x7D: 'f32', 0x7C: 'f64', 0x7B: 'v128', 0x70: 'funcref', 0x6F: 'externref' }
/** These two are followed by the type that they refer to. */
const REFERENCES = [0x63, 0x64]

/** The functions that come with this library, beside the kernel's. */
const OURS = new Set(['hostMemoryGet', 'hostStoreGet', 'hostStoreSet', 'hostStoreDelete', 'hostStoreExists', 'hostStoreKeys',
  'hostStoreIncrement', 'hostStoreCompareAndSwap', 'hostStoreGetMany'])

/** Reads the parts of a module one after the other. */
class Reader {
  #bytes
  #at

  constructor (bytes, at = 0) {
    this.#bytes = bytes
    this.#at = at
  }

  get isAtEnd () {
    return this.#at >= this.#bytes.length
  }

  byte () {
    if (this.isAtEnd) throw new RangeError('the module ends too early')
    return this.#bytes[this.#at++]
  }

  /** A number in LEB128, which may have 64 bits. */
  number () {
    let value = 0
    for (let scale = 1; ; scale *= 128) {
      const byte = this.byte()
      value += (byte & 127) * scale
      if (byte < 128) return value
    }
  }

  bytes () {
    const length = this.number()
    this.#at += length
    return this.#bytes.subarray(this.#at - length, this.#at)
  }

  text () {
    return this.bytes().toString()
  }

  list (read) {
    return Array.from({ length: Math.min(this.number(), this.#bytes.length) }, read)
  }

  valueType () {
    const byte = this.byte()
    if (!REFERENCES.includes(byte)) return VALUE_TYPES[byte] ?? '?'
    this.number()
    return 'ref'
  }

  limits () {
    const flags = this.byte()
    this.number()
    if ((flags & 1) !== 0) this.number()
    // A page size of its own.
    if ((flags & 8) !== 0) this.number()
  }
}

/** The types of functions, up to the first type of another kind: compilers of plugins that use them are rare. */
function readTypes (reader) {
  const types = []
  for (let left = reader.number(); left > 0 && reader.byte() === FUNCTION_TYPE; left--) {
    const value = () => reader.valueType()
    types.push({ params: reader.list(value), results: reader.list(value) })
  }
  return types
}

function readImport (reader, types) {
  const [module, name, kind] = [reader.text(), reader.text(), KINDS[reader.byte()]]
  switch (kind) {
    case 'function': return { module, name, kind, ...types[reader.number()] }
    case 'table': reader.valueType(); reader.limits(); break
    case 'memory': reader.limits(); break
    case 'global': reader.valueType(); reader.byte(); break
    default: reader.byte(); reader.number()
  }
  return { module, name, kind }
}

/** The imports and exports of a module's bytes, those that are functions with `params` and `results`. */
function interfaceOf (bytes) {
  const reader = new Reader(bytes, 8)
  let types = []
  let imports = []
  let functions = []
  let exports = []
  while (!reader.isAtEnd) {
    const id = reader.byte()
    const section = new Reader(reader.bytes())
    if (id === TYPES) types = readTypes(section)
    if (id === IMPORTS) imports = section.list(() => readImport(section, types))
    if (id === FUNCTIONS) functions = section.list(() => types[section.number()])
    if (id === EXPORTS) {
      const all = [...imports.filter(({ kind }) => kind === 'function'), ...functions]
      exports = section.list(() => {
        const [name, kind, index] = [section.text(), KINDS[section.byte()], section.number()]
        const { params, results } = (kind === 'function' && all[index]) || {}
        return { name, kind, ...(params && { params, results }) }
      })
    }
  }
  return { imports, exports }
}

/** The provider of an import: 'kernel', 'wasi', 'host' for this library, or `undefined` for a host function or another module. */
function providerOf ({ module, name }) {
  if (module === WASI) return 'wasi'
  if (module === KERNEL) return 'kernel'
  // PDKs of 2023 import the kernel from env.
  if (module === 'env' && name.startsWith('extism_')) return 'kernel'
  return (module === USER || module === 'env') && OURS.has(name) ? 'host' : undefined
}

module.exports = { interfaceOf, providerOf }
