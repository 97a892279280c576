'use strict'

const { readFileSync } = require('node:fs')
const { parse } = require('yaml')
const { functionsOf } = require('extism-host/internal')
const { UsageError } = require('./usage-error.js')

/** Reads the schema of a plugin's functions, in YAML or JSON. */
function readSchema (file) {
  let text
  try {
    text = readFileSync(file, 'utf8')
  } catch (error) {
    throw new UsageError(`cannot read the schema ${file}: ${error.code}`)
  }
  try {
    const schema = parse(text)
    const version = schema?.version
    if (version !== undefined && version !== 'v1-draft') throw new Error(`its version is ${version}; only v1-draft is supported`)
    functionsOf(schema)
    return schema
  } catch (error) {
    throw new UsageError(`${file} is not a schema of a plugin: ${error.message}`)
  }
}

module.exports = { readSchema }
