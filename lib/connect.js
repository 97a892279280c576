'use strict'

const { missingPackageError } = require('./optional-package.js')

// Node detects the names for `import { … }` only in exactly this form.
try {
  module.exports = require('@extism-host/connect')
} catch (error) {
  throw missingPackageError('@extism-host/connect', error)
}
