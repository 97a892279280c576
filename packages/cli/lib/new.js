'use strict'

// Makes the project of a new plugin.

const { cpSync, mkdirSync, readdirSync, writeFileSync } = require('node:fs')
const { basename, join, resolve } = require('node:path')
const { codedError } = require('extism-host/internal')
const { version } = require('../package.json')
const { UsageError } = require('./usage-error.js')

const LANGUAGES = {
  go: {
    needs: 'Go 1.24 or later',
    build: 'GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o plugin.wasm .'
  },
  rust: {
    needs: 'Rust, and its target: rustup target add wasm32-unknown-unknown',
    build: 'cargo build --quiet --release --target wasm32-unknown-unknown && cp target/wasm32-unknown-unknown/release/plugin.wasm plugin.wasm'
  },
  assemblyscript: {
    needs: 'only Node.js: npm installs the compiler',
    build: 'asc plugin.ts --use abort=plugin/abort_ -O -o plugin.wasm',
    devDependencies: { '@extism/as-pdk': '^1.0.0', assemblyscript: '^0.28.20' }
  }
}

function packageOf (name, { build, devDependencies }) {
  return {
    name,
    private: true,
    scripts: {
      build,
      dev: 'extism-host dev plugin.wasm --wasi --build "npm run --silent build"',
      test: 'npm run --silent build && node --test'
    },
    devDependencies: { '@extism-host/cli': `^${version}`, 'extism-host': `^${version}`, ...devDependencies }
  }
}

/** Creates the directory; one that exists already has to be empty. */
function createDirectory (directory) {
  mkdirSync(directory, { recursive: true })
  if (readdirSync(directory).length > 0) throw codedError('INVALID_ARGUMENT', `${directory} is not empty: choose another name`)
}

function create (directory, { lang }) {
  const name = basename(resolve(directory))
  if (!/^[a-z0-9][a-z0-9._-]*$/.test(name)) throw new UsageError(`"${name}" cannot be the name of an npm package: use small letters, digits, - and _`)
  const language = LANGUAGES[lang]
  createDirectory(directory)
  for (const part of ['common', lang]) cpSync(join(__dirname, 'new', part), directory, { recursive: true })
  writeFileSync(join(directory, 'package.json'), `${JSON.stringify(packageOf(name, language), null, 2)}\n`)
  // npm would rename this file in our own package.
  writeFileSync(join(directory, '.gitignore'), 'node_modules/\ntarget/\nplugin.wasm\n')
  console.log([
    `Created ${directory}. It needs ${language.needs}.`,
    '',
    ...(resolve(directory) === process.cwd() ? [] : [`cd ${directory}`]),
    'npm install',
    'npm test',
    'npm run dev'
  ].join('\n'))
}

module.exports = { create }
