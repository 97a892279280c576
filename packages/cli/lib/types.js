'use strict'

// `types`: writes the TypeScript interface of a plugin's functions, from their schema.

const { writeFileSync } = require('node:fs')
const { basename } = require('node:path')
const { codedError, encodingOf, functionsOf, isObject, resolve } = require('extism-host/internal')
const { readSchema } = require('./plugin-schema.js')
const { UsageError } = require('./usage-error.js')

const STYLE = { semi: false, singleQuote: true, printWidth: 120 }

/** Keywords whose value has a schema for each name; a name may be that of a keyword. */
const NAMED_SCHEMAS = new Set(['properties', 'patternProperties'])

function loadCompiler () {
  try {
    return require('json-schema-to-typescript').compile
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error
    throw codedError('NOT_INSTALLED', 'types need the package json-schema-to-typescript: npm install --save-dev json-schema-to-typescript')
  }
}

/** A name for TypeScript: greeter-2.schema.yaml is Greeter2. */
function nameOf (file) {
  const [stem] = basename(file).split('.')
  const name = stem.replace(/(?:^|\W+|_+)(\w?)/g, (_, letter) => letter.toUpperCase())
  return /^[A-Za-z]/.test(name) ? name : `Plugin${name}`
}

/** The definitions of a schema in one place, under the names that TypeScript gets. */
function definitionsOf ({ components, definitions, $defs }) {
  return { ...components?.schemas, ...definitions, ...$defs }
}

const mapValues = (object, map) => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, map(value, key)]))

/** Returns a function that converts a part of the schema to what the compiler knows: definitions, `null` as a type, base64. */
function converterFor (schema) {
  return function convert (value) {
    if (Array.isArray(value)) return value.map(convert)
    if (!isObject(value)) return value
    // `tsType` and `tsEnumNames` would put text into the file that nothing checks.
    const { $ref, nullable, contentType, codeSamples, tsType, tsEnumNames, ...rest } = value
    // Refuses references to other files, which the compiler would read.
    if ($ref !== undefined) resolve(schema, value)
    // With other keywords beside it, the compiler would make another interface of each reference.
    const converted = $ref === undefined
      ? mapValues(rest, (part, key) => NAMED_SCHEMAS.has(key) && isObject(part) ? mapValues(part, convert) : convert(part))
      : { $ref: $ref.replace(/^#\/(?:components\/schemas|\$defs)\//, '#/definitions/') }
    if (converted.type === 'buffer') converted.type = 'string'
    return nullable ? { anyOf: [converted, { type: 'null' }] } : converted
  }
}

function typeOf (schema, node) {
  const encoding = encodingOf(schema, node)
  if (encoding === 'bytes') return { tsType: 'Uint8Array' }
  const converted = converterFor(schema)(node)
  return encoding === 'text' && converted.$ref === undefined ? { ...converted, type: 'string' } : converted
}

/** The schema of an interface with a property for each function. */
function interfaceSchema (schema) {
  const properties = {}
  for (const [name, { input, output, description }] of functionsOf(schema)) {
    const parts = Object.entries({ input, output }).filter(([, node]) => node !== undefined)
    properties[name] = {
      type: 'object',
      ...(description === undefined ? {} : { description }),
      required: parts.map(([key]) => key),
      properties: Object.fromEntries(parts.map(([key, node]) => [key, typeOf(schema, node)]))
    }
  }
  return { type: 'object', required: Object.keys(properties), properties, definitions: mapValues(definitionsOf(schema), converterFor(schema)) }
}

async function types (file, { name = nameOf(file), output }) {
  if (!/^[A-Za-z_$][\w$]*$/.test(name)) throw new UsageError(`--name must be a name of TypeScript, not "${name}"`)
  const compile = loadCompiler()
  const schema = readSchema(file)
  const text = await compile(interfaceSchema(schema), name, {
    bannerComment: `// Written by \`extism-host types ${basename(file)}\`: change the schema, then run it again.`,
    additionalProperties: false,
    format: true,
    style: STYLE
  })
  if (output === undefined) process.stdout.write(text)
  else writeFileSync(output, text)
}

module.exports = { types }
