'use strict'

const { readFile } = require('node:fs/promises')
const { codedError } = require('extism-host/internal')
const { interfaceOf, providerOf } = require('./module-interface.js')
const { printable } = require('./printable.js')
const { signature, stub } = require('./stub.js')

/** Exported functions that initialize a plugin, and are not for callers. */
const START_FUNCTIONS = new Set(['_start', '_initialize', '__wasm_call_ctors', 'hs_init'])

async function readModule (path) {
  let bytes
  try {
    bytes = await readFile(path)
  } catch (error) {
    throw codedError('FILE_NOT_FOUND', `cannot read ${path}: ${error.code}`)
  }
  try {
    await WebAssembly.compile(bytes)
    return interfaceOf(bytes)
  } catch (error) {
    throw codedError('INVALID_WASM', `${path} is not a WebAssembly module: ${error.message}`)
  }
}

const unique = (names) => [...new Set(names)].sort()

async function describe (path) {
  const { imports, exports } = await readModule(path)
  const of = (provider) => unique(imports.filter((one) => providerOf(one) === provider).map(({ name }) => name))
  const kernel = of('kernel').map((name) => name.replace(/^extism_/, ''))
  const functions = exports.filter(({ name, kind }) => kind === 'function' && !START_FUNCTIONS.has(name))
  return {
    functions: unique(functions.map(({ name }) => name)),
    signatures: Object.fromEntries(functions.map(({ name, params, results }) => [name, { params, results }])),
    otherExports: exports.filter(({ name, kind }) => kind !== 'function' || START_FUNCTIONS.has(name)).map(({ name, kind }) => ({ name, kind })),
    needs: {
      wasi: of('wasi').length > 0,
      http: kernel.includes('http_request'),
      variables: kernel.includes('var_get') || kernel.includes('var_set'),
      config: kernel.includes('config_get'),
      store: of('host')
    },
    hostFunctions: imports.filter((one) => providerOf(one) === undefined).map(({ module, ...rest }) => ({ namespace: module, ...rest })),
    kernel,
    wasi: of('wasi')
  }
}

function formatText ({ functions, signatures, needs, hostFunctions, kernel, wasi }) {
  const list = (names) => names.length === 0 ? 'none' : printable(names.join(', '))
  const needed = [
    needs.wasi && 'WASI (--wasi)',
    needs.http && 'HTTP (allowedHosts)',
    needs.config && 'config',
    needs.variables && 'variables',
    needs.store.length > 0 && `a store (${needs.store.join(', ')})`
  ].filter(Boolean)
  return [
    `exports functions:       ${list(functions.map((name) => name + signature(signatures[name])))}`,
    `uses:                    ${list(needed)}`,
    `host functions to write: ${list(hostFunctions.map((one) => `${one.namespace} ${one.name}${signature(one)}`))}`,
    `imports of the kernel:   ${list(kernel)}`,
    `imports of WASI:         ${list(wasi)}`
  ].join('\n')
}

async function inspect (path, { json, stub: language }) {
  const described = await describe(path)
  if (language !== undefined) return console.log(stub(described.hostFunctions, language))
  console.log(json ? JSON.stringify(described, null, 2) : formatText(described))
}

module.exports = { START_FUNCTIONS, inspect }
