'use strict'

// Resolves the source of a plugin to a manifest whose modules are paths or bytes. Sources on the network are fetched
// here; Rust reads the files.

const { fileURLToPath } = require('node:url')
const { asBytes } = require('./bytes.js')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { isObject, pick } = require('./objects.js')

const WASM_KEYS = {
  path: 'path', data: 'data', url: 'url', response: 'response', module: 'module', name: 'name', hash: 'hash'
}
const MODULE_TYPES = ['application/wasm', 'application/octet-stream']
const MANIFEST_TYPES = ['application/json', 'text/json']
const MODULE_HAS_NO_BYTES = 'a WebAssembly.Module does not expose the bytes that it was compiled from; ' +
  'pass the bytes themselves, their path or their URL'

/** Checks an object's class across realms; `instanceof` knows only the classes of this realm. */
function isA (value, name) {
  return Object.prototype.toString.call(value) === `[object ${name}]`
}

/** Converts a `file:` URL to a path. */
function asPath (url) {
  try {
    return fileURLToPath(url)
  } catch (error) {
    throw invalidArgument(`a file: URL of a plugin must name a file of this machine (${error.message})`)
  }
}

function asURL (value, what) {
  let url
  try {
    url = new URL(value)
  } catch {
    throw invalidArgument(`${what} is not a valid URL; it must begin with http:, https: or file:`)
  }
  if (!['http:', 'https:', 'file:'].includes(url.protocol)) {
    throw invalidArgument(`${what} must be an http:, https: or file: URL, not ${url.protocol}`)
  }
  if (url.username !== '' || url.password !== '') {
    throw invalidArgument(`${what} must not contain credentials; pass a fetch that sends them in a header`)
  }
  return url
}

/** Formats a URL for messages, without its query, which may contain secrets. */
function withoutSecrets (url) {
  return `"${url.origin}${url.pathname}"`
}

function fetchFailed (what, error) {
  // `fetch` may be the user's function, and throw anything.
  const reason = error?.cause?.message || error?.cause?.code || error?.message || describe(error)
  const failure = codedError('FETCH_FAILED', `cannot fetch ${what}: ${reason}`)
  failure.cause = error
  return failure
}

async function fetchResponse (url, { fetch, signal }) {
  try {
    return await fetch(url, { redirect: 'follow', signal })
  } catch (error) {
    throw fetchFailed(withoutSecrets(url), error)
  }
}

/** Reads a Response: returns `{ bytes }` of a module, or `{ json }` of a manifest. */
async function readResponse (response, where) {
  if (typeof response?.headers?.get !== 'function') {
    throw invalidArgument(`fetch must resolve to a Response, not to ${describe(response)}`)
  }
  const what = where ?? (URL.canParse(response.url) ? withoutSecrets(new URL(response.url)) : 'the Response')
  if (!response.ok) throw codedError('FETCH_FAILED', `cannot fetch ${what}: the status is ${response.status}`)
  if (response.bodyUsed) {
    throw invalidArgument('the body of the Response has already been read; pass a clone() made before that')
  }
  const [type] = (response.headers.get('content-type') ?? '').toLowerCase().split(';')
  const isManifest = MANIFEST_TYPES.includes(type.trim())
  if (!isManifest && type.trim() !== '' && !MODULE_TYPES.includes(type.trim())) {
    throw invalidArgument(`the content-type of ${what} is ${type.trim().slice(0, 100)}; it must be one of ` +
      [...MODULE_TYPES, ...MANIFEST_TYPES].join(', '))
  }
  try {
    return isManifest ? { json: await response.text() } : { bytes: new Uint8Array(await response.arrayBuffer()) }
  } catch (error) {
    throw fetchFailed(what, error)
  }
}

function parseManifest (json) {
  try {
    return JSON.parse(json)
  } catch {
    // The parser's message would quote the text, which may contain secrets.
    throw invalidArgument('the manifest is not valid JSON')
  }
}

/** Converts the `data` of a module to bytes; a string is base64. */
function asData (data, what) {
  const bytes = asBytes(data)
  if (bytes !== undefined) return bytes
  if (typeof data !== 'string') {
    throw invalidArgument(`"data" of ${what} must be bytes or base64, not ${describe(data)}`)
  }
  if (data.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(data)) {
    throw invalidArgument(`"data" of ${what} is not valid base64; a file is given by "path"`)
  }
  return Buffer.from(data, 'base64')
}

/** Resolves one module of a manifest to its `path` or its `data`. */
async function loadWasm (item, index, network, isRemote) {
  const what = `wasm[${index}] of the manifest`
  const { name, hash, ...rest } = pick(item, WASM_KEYS, what)
  const source = { __proto__: null, ...rest }
  for (const [key, value] of Object.entries({ name, hash, path: source.path })) {
    if (value !== undefined && typeof value !== 'string') {
      throw invalidArgument(`"${key}" of ${what} must be a string, not ${describe(value)}`)
    }
  }
  const keys = Object.keys(source)
  if (keys.length !== 1) {
    throw invalidArgument(`${what} must have exactly one of path, data, url and response`)
  }
  return { __proto__: null, ...await loadBytes(keys[0], source[keys[0]], { what, hash, network, isRemote }), name, hash }
}

async function loadBytes (key, value, { what, hash, network, isRemote }) {
  if (key === 'data') return { data: asData(value, what) }
  if (key === 'path') return { path: checkPath(value, what, isRemote) }
  if (key === 'module') {
    throw invalidArgument(hash === undefined
      ? `"module" of ${what} cannot be loaded: ${MODULE_HAS_NO_BYTES}`
      : 'Item specified a hash but WebAssembly.Module source data is unavailable for hashing')
  }
  if (key === 'response' && !isA(value, 'Response')) {
    throw invalidArgument(`"response" of ${what} must be a Response, not ${describe(value)}`)
  }
  let response = value
  let where
  if (key === 'url') {
    const url = asURL(value, `"url" of ${what}`)
    if (url.protocol === 'file:') return { path: checkPath(asPath(url), what, isRemote) }
    where = withoutSecrets(url)
    response = await fetchResponse(url, network)
  }
  const { bytes } = await readResponse(response, where)
  if (bytes === undefined) throw invalidArgument(`"${key}" of ${what} must be a module, not a manifest`)
  return { data: bytes }
}

/** Rejects paths in manifests from the network, whose authors must not make this machine read its files. */
function checkPath (path, what, isRemote) {
  if (isRemote) {
    throw invalidArgument(`${what} names a file, which a manifest from the network must not; use a url or data there, or pass the manifest as an object`)
  }
  if (path.includes('\0')) throw invalidArgument(`"path" of ${what} has a NUL character`)
  return path
}

/** Returns the manifest of a source, unchecked, and whether it came from the network. */
async function asManifest (source, network) {
  if (typeof source === 'string') {
    if (source === '') throw invalidArgument('the path of the plugin is empty')
    if (/^\s*\{/.test(source)) return { manifest: parseManifest(source), isRemote: false }
    if (!/^(file|https?):/i.test(source)) return { manifest: { wasm: [{ path: source }] }, isRemote: false }
  }
  if (typeof source === 'string' || isA(source, 'URL')) {
    const url = asURL(source, 'the source of the plugin')
    if (url.protocol === 'file:') return { manifest: { wasm: [{ path: asPath(url) }] }, isRemote: false }
    return ofResponse(await fetchResponse(url, network), withoutSecrets(url))
  }
  const data = asBytes(source)
  if (data !== undefined) return { manifest: { wasm: [{ data }] }, isRemote: false }
  if (isA(source, 'Response')) return ofResponse(source)
  if (isA(source, 'WebAssembly.Module')) throw invalidArgument(`the plugin cannot be loaded: ${MODULE_HAS_NO_BYTES}`)
  return { manifest: source, isRemote: false }
}

async function ofResponse (response, where) {
  const { bytes, json } = await readResponse(response, where)
  const manifest = json === undefined ? { wasm: [{ data: bytes }] } : parseManifest(json)
  return { manifest, isRemote: true }
}

/** Loads the manifest of a source; each of its modules gets a `path`, or `data` in bytes. `signal` cancels fetches. */
async function loadManifest (source, fetch = globalThis.fetch, signal) {
  const network = { fetch, signal }
  const { manifest, isRemote } = await asManifest(source, network)
  if (!isObject(manifest) || manifest.wasm === undefined) {
    throw invalidArgument(
      'a plugin\'s source must be a path, a URL, bytes, a Response, or a manifest {wasm: [{path | data | url | response}]}, ' +
      `not ${describe(manifest)}`
    )
  }
  if (!Array.isArray(manifest.wasm)) {
    throw invalidArgument(`"wasm" of the manifest must be an array, not ${describe(manifest.wasm)}`)
  }
  if (isRemote && (manifest.allowedPaths ?? manifest.allowed_paths) !== undefined) {
    throw invalidArgument('a manifest from the network must not have allowedPaths; pass it as an option of createPlugin')
  }
  const wasm = await Promise.all(manifest.wasm.map((item, index) => loadWasm(item, index, network, isRemote)))
  return { ...manifest, wasm }
}

module.exports = { loadManifest }
