#!/usr/bin/env node
'use strict'

const { missingPackageError } = require('../lib/optional-package.js')

function loadCommand () {
  try {
    return require('@extism-host/cli')
  } catch (error) {
    throw missingPackageError('@extism-host/cli', error)
  }
}

try {
  loadCommand().main(process.argv)
} catch (error) {
  if (error.code !== 'NOT_INSTALLED') throw error
  console.error(`extism-host: ${error.message}, or run npx @extism-host/cli`)
  process.exitCode = 1
}
