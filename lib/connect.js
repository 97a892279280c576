'use strict'

const { missingPart } = require('./part.js')

// Node finds the names for `import { … }` in just this form.
try {
  module.exports = require('@extism-host/connect')
} catch (error) {
  throw missingPart('@extism-host/connect', error)
}
