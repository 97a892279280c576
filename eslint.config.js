'use strict'

module.exports = require('neostandard')({
  ignores: ['binding.js', 'binding.d.ts', 'target/', 'docs/.vitepress/cache/', 'docs/.vitepress/dist/'],
  env: ['jest']
})
