'use strict'

// `extism-host/fastify` and the command are packages of their own, so that the core has no other dependencies.

const { codedError } = require('./errors.js')

/** Returns the error to throw after `require(name)` failed: NOT_INSTALLED if the package is missing, else `error` itself. */
function missingPackageError (name, error) {
  if (error.code !== 'MODULE_NOT_FOUND' || !error.message.includes(`'${name}'`)) return error
  return codedError('NOT_INSTALLED', `${name} is not installed; run npm install ${name}`)
}

module.exports = { missingPackageError }
