'use strict'

const { readFile } = require('node:fs/promises')
const { codedError, KERNEL_NAMESPACE: KERNEL, USER_NAMESPACE: USER, WASI_NAMESPACE: WASI } = require('extism-host/internal')

/** The functions that come with this library, beside the kernel's. */
const OURS = new Set(['hostMemoryGet', 'hostStoreGet', 'hostStoreSet', 'hostStoreDelete', 'hostStoreExists', 'hostStoreKeys',
  'hostStoreIncrement', 'hostStoreCompareAndSwap', 'hostStoreGetMany'])

/** Exports that belong to a plugin's start, and are not for callers. */
const START = new Set(['_start', '_initialize', '__wasm_call_ctors', 'hs_init'])

async function moduleOf (path) {
  let bytes
  try {
    bytes = await readFile(path)
  } catch (error) {
    throw codedError('FILE_NOT_FOUND', `${path} cannot be read: ${error.code}`)
  }
  try {
    return new WebAssembly.Module(bytes)
  } catch (error) {
    throw codedError('INVALID_WASM', `${path} is no WebAssembly module: ${error.message}`)
  }
}

const unique = (names) => [...new Set(names)].sort()

/** Who provides an import: the kernel, WASI, this library, or somebody else. */
function providerOf ({ module, name }) {
  if (module === WASI) return 'wasi'
  if (module === KERNEL) return 'kernel'
  // PDKs of 2023 have all of it in env.
  if (module === 'env' && name.startsWith('extism_')) return 'kernel'
  return (module === USER || module === 'env') && OURS.has(name) ? 'host' : undefined
}

async function describe (path) {
  const module = await moduleOf(path)
  const imports = WebAssembly.Module.imports(module)
  const exports = WebAssembly.Module.exports(module)
  const of = (provider) => unique(imports.filter((one) => providerOf(one) === provider).map(({ name }) => name))
  const kernel = of('kernel').map((name) => name.replace(/^extism_/, ''))
  return {
    functions: unique(exports.filter(({ name, kind }) => kind === 'function' && !START.has(name)).map(({ name }) => name)),
    otherExports: exports.filter(({ name, kind }) => kind !== 'function' || START.has(name)).map(({ name, kind }) => ({ name, kind })),
    needs: {
      wasi: of('wasi').length > 0,
      http: kernel.includes('http_request'),
      variables: kernel.includes('var_get') || kernel.includes('var_set'),
      config: kernel.includes('config_get'),
      store: of('host')
    },
    hostFunctions: imports.filter((one) => providerOf(one) === undefined).map(({ module, name, kind }) => ({ namespace: module, name, kind })),
    kernel,
    wasi: of('wasi')
  }
}

/** Names are the module's, and might do something to the terminal of who reads them. */
const printable = (text) => text.replace(/\p{C}/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`)

function forPeople ({ functions, needs, hostFunctions, kernel, wasi }) {
  const list = (names) => names.length === 0 ? 'none' : printable(names.join(', '))
  const wants = [
    needs.wasi && 'WASI (--wasi)',
    needs.http && 'HTTP (allowedHosts)',
    needs.config && 'config',
    needs.variables && 'variables',
    needs.store.length > 0 && `a store (${needs.store.join(', ')})`
  ].filter(Boolean)
  return [
    `exports functions:       ${list(functions)}`,
    `uses:                    ${list(wants)}`,
    `host functions to write: ${list(hostFunctions.map(({ namespace, name }) => `${namespace} ${name}`))}`,
    `imports of the kernel:   ${list(kernel)}`,
    `imports of WASI:         ${list(wasi)}`
  ].join('\n')
}

async function inspect (path, { json }) {
  const described = await describe(path)
  console.log(json ? JSON.stringify(described, null, 2) : forPeople(described))
}

module.exports = { inspect }
