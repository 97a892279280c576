'use strict'

const { missingPackageError } = require('./optional-package.js')

// Node detects the names for `import { … }` only in exactly this form.
try {
  module.exports = require('@extism-host/otel')
} catch (error) {
  throw missingPackageError('@extism-host/otel', error)
}
