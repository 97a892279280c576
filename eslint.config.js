'use strict'

module.exports = require('neostandard')({
  ignores: ['binding.js', 'binding.d.ts', 'target/'],
  env: ['jest']
})
