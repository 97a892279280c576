'use strict'

// Prints the section of CHANGELOG.md for a version: `node scripts/release-notes.js v0.2.0`.

const { readFileSync } = require('node:fs')
const { join } = require('node:path')

const version = process.argv[2].replace(/^v/, '')
const changelog = readFileSync(join(__dirname, '../CHANGELOG.md'), 'utf8')
const section = changelog.split(/^## /m).find((section) => section.split(/[\s\]]/)[0].replace('[', '') === version)
if (section === undefined) {
  console.error(`CHANGELOG.md has no section for ${version}`)
  process.exit(1)
}
// Without the link targets at the end of the file.
console.log(section.split('\n').slice(1).filter((line) => !/^\[[^\]]+\]: /.test(line)).join('\n').trim())
