#!/usr/bin/env node
'use strict'

const { missingPart } = require('../lib/part.js')

function loadCommand () {
  try {
    return require('@extism-host/cli')
  } catch (error) {
    throw missingPart('@extism-host/cli', error)
  }
}

try {
  loadCommand().main(process.argv)
} catch (error) {
  if (error.code !== 'NOT_INSTALLED') throw error
  console.error(`extism-host: ${error.message}, or run npx @extism-host/cli`)
  process.exitCode = 1
}
