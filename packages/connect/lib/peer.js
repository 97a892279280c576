'use strict'

const { codedError } = require('extism-host/internal')

/** Loads an optional package. */
function peer (name, load) {
  try {
    return load()
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND' || !error.message.includes(`'${name}'`)) throw error
    throw codedError('NOT_INSTALLED', `this connection needs the package ${name}: npm install ${name}`)
  }
}

module.exports = { peer }
