'use strict'

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { ROOT } = require('./processes.js')

/** The examples of a document in a language, in their order. */
function examples (file, language) {
  const text = readFileSync(join(ROOT, file), 'utf8')
  return [...text.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)]
    .filter((match) => match[1] === language)
    .map((match) => match[2])
}

module.exports = { examples }
