'use strict'

// Loads the native addon. index.js requires this file first, so that an unsupported platform gets a clear error.

const { optionalDependencies = {} } = require('../package.json')

const PREFIX = '@extism-host/binding-'

/** This platform, as in the names of our packages. */
function platform () {
  const { platform, arch } = process
  if (platform === 'win32') return `${platform}-${arch}-msvc`
  if (platform !== 'linux') return `${platform}-${arch}`
  return `linux-${arch}-${process.report.getReport().header.glibcVersionRuntime === undefined ? 'musl' : 'gnu'}`
}

function load () {
  try {
    return require('../binding.js')
  } catch (cause) {
    const here = platform()
    const names = Object.keys(optionalDependencies).map((name) => name.slice(PREFIX.length))
    const remedy = names.includes(here)
      ? `Its package ${PREFIX}${here} is missing or cannot be loaded: install with optional dependencies, on the machine that runs the program`
      : `There are binaries for ${names.join(', ') || 'no platform'}. Build it from source: npm ci in a clone of the repository, with Rust and a C compiler`
    throw Object.assign(new Error(`extism-host has no binary for ${here} here. ${remedy}`, { cause }), { code: 'UNSUPPORTED_PLATFORM' })
  }
}

module.exports = load()
