'use strict'

// The schema of a plugin's functions: XTP's format (v1-draft), or a JSON Schema whose properties are the functions.

const { asBytes } = require('./bytes.js')
const { describe, invalidArgument } = require('./errors.js')
const { isObject } = require('./objects.js')

/** Keywords that validators of JSON Schema reject or should not see. */
const OTHER_KEYWORDS = new Set(['contentType', 'codeSamples', 'example', '$ref', '$id', '$schema', 'components', 'definitions', '$defs'])
const SCHEMAS = new Set(['items', 'additionalProperties', 'not'])
const OBJECTS_OF_SCHEMAS = new Set(['properties', 'patternProperties'])
const LISTS_OF_SCHEMAS = new Set(['allOf', 'anyOf', 'oneOf'])
/** Formats of XTP and OpenAPI that only name a type of some language. */
const TYPE_FORMATS = new Set(['int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'float', 'double', 'byte', 'binary'])

/** Each reference repeats the schema that it leads to, and those may have references again: the result can grow without end. */
const MAX_INLINE_PARTS = 1_000
const MAX_INLINE_DEPTH = 8

const unescaped = (part) => decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~')

/** Follows references until there is none. */
function resolve (root, node) {
  for (let depth = 0; isObject(node) && node.$ref !== undefined; depth++) {
    if (typeof node.$ref !== 'string' || !node.$ref.startsWith('#/') || depth > 100) {
      throw invalidArgument(`schema has the reference ${JSON.stringify(node.$ref)}; references must lead to a part of the schema, such as "#/components/schemas/Person"`)
    }
    const next = node.$ref.slice(2).split('/').map(unescaped).reduce((value, key) => isObject(value) && Object.hasOwn(value, key) ? value[key] : undefined, root)
    if (next === undefined) throw invalidArgument(`schema has the reference "${node.$ref}", but no such part`)
    node = next
  }
  if (!isObject(node)) throw invalidArgument(`a part of schema must be an object, not ${describe(node)}`)
  return node
}

/** The functions of a schema, by name, with the schemas of their input and output. */
function functionsOf (schema) {
  if (!isObject(schema)) throw invalidArgument(`schema must be an object, such as a parsed XTP schema, not ${describe(schema)}`)
  const { exports: exported } = schema
  if (isObject(exported)) return new Map(Object.entries(exported).map(([name, node]) => [name, node ?? {}]))
  const { properties } = resolve(schema, schema)
  if (!isObject(properties)) {
    throw invalidArgument('schema must have "exports", as in XTP v1-draft, or be a JSON Schema whose properties are the functions')
  }
  return new Map(Object.entries(properties).map(([name, node]) => {
    const { properties: { input, output } = {}, description } = resolve(schema, node)
    return [name, { input, output, description }]
  }))
}

/** How a value becomes bytes: 'none', 'text', 'bytes' or 'json'. */
function encodingOf (schema, node) {
  if (node === undefined) return 'none'
  const resolved = resolve(schema, node)
  const contentType = node.contentType ?? resolved.contentType
  if (contentType === undefined) return resolved.type === 'string' ? 'text' : resolved.type === 'buffer' ? 'bytes' : 'json'
  if (/[/+]json\b/i.test(contentType)) return 'json'
  return /^text\//i.test(contentType) ? 'text' : 'bytes'
}

/**
 * Converts a part of a schema to plain JSON Schema, for validators. References are replaced by what they lead to, except
 * to schemas that contain themselves, and those beyond MAX_INLINE_PARTS and MAX_INLINE_DEPTH, which become `definitions`.
 */
function toJsonSchema (schema, node) {
  const names = new Map()
  const definitions = {}
  let parts = 0

  function refer (resolved) {
    if (!names.has(resolved)) {
      const name = `recursive${names.size + 1}`
      names.set(resolved, name)
      definitions[name] = convert(resolved, [])
    }
    return { $ref: `#/definitions/${names.get(resolved)}` }
  }

  function convert (node, above) {
    if (!isObject(node)) return node
    const resolved = resolve(schema, node)
    const isTooLarge = ++parts > MAX_INLINE_PARTS || above.length > MAX_INLINE_DEPTH
    if (above.includes(resolved) || (isTooLarge && resolved !== node)) return node.nullable ? { anyOf: [refer(resolved), { type: 'null' }] } : refer(resolved)
    const inside = [...above, resolved]
    const each = (values) => Object.fromEntries(Object.entries(values).map(([name, value]) => [name, convert(value, inside)]))
    const result = {}
    for (const [key, value] of Object.entries({ ...resolved, ...node })) {
      if (OTHER_KEYWORDS.has(key) || (key === 'format' && TYPE_FORMATS.has(value))) continue
      if (OBJECTS_OF_SCHEMAS.has(key)) result[key] = each(value)
      else if (LISTS_OF_SCHEMAS.has(key)) result[key] = value.map((one) => convert(one, inside))
      else result[key] = SCHEMAS.has(key) ? convert(value, inside) : value
    }
    // In JSON, bytes are base64.
    if (result.type === 'buffer') result.type = 'string'
    if (result.type === undefined && result.properties !== undefined) result.type = 'object'
    if (result.nullable && result.enum !== undefined) result.enum = [...new Set([...result.enum, null])]
    return result
  }

  const converted = convert(node, [])
  return names.size === 0 ? converted : { ...converted, definitions }
}

function encode (encoding, value, what) {
  if (encoding === 'text' && typeof value !== 'string') throw invalidArgument(`${what} must be a string, not ${describe(value)}`)
  if (encoding === 'bytes' && asBytes(value) === undefined) throw invalidArgument(`${what} must be bytes, not ${describe(value)}`)
  if (encoding === 'none' && value !== undefined && value !== null) throw invalidArgument(`${what} must be undefined: the schema has none`)
  if (encoding !== 'json') return value
  const json = JSON.stringify(value)
  if (json === undefined) throw invalidArgument(`${what} must be a value of JSON, not ${describe(value)}`)
  return json
}

function decode (encoding, output) {
  if (encoding === 'none') return undefined
  if (encoding === 'json') return output === null ? null : output.json()
  if (encoding === 'text') return output === null ? '' : output.text()
  return output === null ? new Uint8Array() : output.bytes()
}

/** The encodings of each function's input and output, or `undefined` without a schema. */
function asEncodings (schema) {
  if (schema === undefined) return undefined
  return new Map([...functionsOf(schema)].map(([name, { input, output }]) => [name, { input: encodingOf(schema, input), output: encodingOf(schema, output) }]))
}

/** A plugin's functions as functions of JavaScript, which convert their input and output by the schema. */
function typedExports (plugin, encodings) {
  const exported = Object.create(null)
  for (const [name, { input, output }] of encodings) {
    exported[name] = async (value, hostContext, options) =>
      decode(output, await plugin.call(name, encode(input, value, `the input of "${name}"`), hostContext, options))
  }
  return Object.freeze(exported)
}

module.exports = { asEncodings, encodingOf, functionsOf, resolve, toJsonSchema, typedExports }
