'use strict'

const { missingPackageError } = require('./optional-package.js')

// Node finds the names for `import { … }` in just this form.
try {
  module.exports = require('@extism-host/connect')
} catch (error) {
  throw missingPackageError('@extism-host/connect', error)
}
