'use strict'

// Parts of this library that are packages of their own, so that the core brings nothing else.

const { codedError } = require('./errors.js')

/** The error for a package that could not be required: the same one, unless the package itself is missing. */
function missingPart (name, error) {
  if (error.code !== 'MODULE_NOT_FOUND' || !error.message.includes(`'${name}'`)) return error
  return codedError('NOT_INSTALLED', `this is a package of its own: npm install ${name}`)
}

module.exports = { missingPart }
