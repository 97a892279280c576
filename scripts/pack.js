'use strict'

// Packs the packages to publish: `node scripts/pack.js <directory> [version]`. Prints their names and files as JSON.
// There is one package for each platform whose binary is in the top directory (`npm run build`) or in `npm/` (`napi
// artifacts`). These are the optional dependencies of the core.

const { execFileSync } = require('node:child_process')
const { copyFileSync, cpSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')

const ROOT = join(__dirname, '..')

const readJson = (path) => JSON.parse(readFileSync(path, 'utf8'))
const writeJson = (path, value) => writeFileSync(path, `${JSON.stringify(value, null, 2)}\n`)

function run (command, args, options) {
  return execFileSync(command, args, { cwd: ROOT, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], ...options })
}

function pack (directory, destination) {
  const [{ name, filename, unpackedSize }] = JSON.parse(run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', destination], { cwd: directory }))
  return { name, file: join(destination, filename), unpackedSize }
}

/** Creates a directory for each platform that has a binary here. */
function platformDirectories (scratch) {
  const npm = join(ROOT, 'npm')
  const thirdParty = run(process.execPath, [join(__dirname, 'third-party.js')])
  run(process.execPath, [join(ROOT, 'node_modules/@napi-rs/cli/dist/cli.js'), 'create-npm-dirs'])
  return readdirSync(npm).flatMap((platform) => {
    const binary = `extism-host.${platform}.node`
    const path = [join(npm, platform, binary), join(ROOT, binary)].find((path) => existsSync(path))
    if (path === undefined) return []
    const directory = join(scratch, platform)
    cpSync(join(npm, platform), directory, { recursive: true })
    copyFileSync(path, join(directory, binary))
    writeFileSync(join(directory, 'THIRD-PARTY.md'), thirdParty)
    copyFileSync(join(ROOT, 'LICENSE'), join(directory, 'LICENSE'))
    return [directory]
  })
}

function main ([destination, version]) {
  const scratch = mkdtempSync(join(tmpdir(), 'extism-host-pack-'))
  try {
    const platforms = platformDirectories(scratch)
    const { files, version: committed } = readJson(join(ROOT, 'package.json'))
    const core = join(scratch, 'core')
    for (const file of [...files, 'package.json', 'README.md', 'LICENSE']) {
      cpSync(join(ROOT, file), join(core, file), { recursive: true })
    }
    const copied = ['fastify', 'connect', 'otel', 'cli'].map((name) => {
      const directory = join(scratch, name)
      cpSync(join(ROOT, 'packages', name), directory, { recursive: true })
      cpSync(join(ROOT, 'LICENSE'), join(directory, 'LICENSE'))
      return directory
    })
    const all = [...platforms, core, ...copied]
    const names = platforms.map((directory) => readJson(join(directory, 'package.json')).name)
    for (const directory of all) {
      const path = join(directory, 'package.json')
      // Remove fields that only this repository needs.
      const { scripts, devDependencies, workspaces, tsd, overrides, ...published } = readJson(path)
      published.version = version ?? committed
      if (platforms.includes(directory)) published.files.push('THIRD-PARTY.md')
      for (const dependencies of [published.dependencies, published.peerDependencies]) {
        for (const name of Object.keys(dependencies ?? {})) {
          if (/^(extism-host$|@extism-host\/)/.test(name)) dependencies[name] = published.version
        }
      }
      if (directory === core) published.optionalDependencies = Object.fromEntries(names.map((name) => [name, published.version]))
      writeJson(path, published)
    }
    console.log(JSON.stringify(all.map((directory) => pack(directory, destination)), null, 2))
  } finally {
    rmSync(scratch, { recursive: true })
  }
}

main(process.argv.slice(2))
