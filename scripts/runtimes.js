'use strict'

// Runs the smoke suite in other runtimes, and with `--jest` the whole Jest suite in other versions of Node:
// `node scripts/runtimes.js [--jest] [node22] [node24] [node26] [bun] [deno]`. Their binaries come from npm.

const { execFileSync, spawnSync } = require('node:child_process')
const { chmodSync, mkdtempSync, rmSync } = require('node:fs')
const { arch, tmpdir } = require('node:os')
const { join } = require('node:path')

const ROOT = join(__dirname, '..')
const SMOKE = '__test__/support/smoke.js'
const LIMIT_MS = 120_000
const CPU = arch()

const node = (version) => ({ package: `node-linux-${CPU}@${version}`, binary: `node-linux-${CPU}/bin/node`, args: [SMOKE] })
const RUNTIMES = {
  node22: node(22),
  node24: node(24),
  node26: node(26),
  bun: { package: `@oven/bun-linux-${CPU === 'arm64' ? 'aarch64' : CPU}`, binary: `@oven/bun-linux-${CPU === 'arm64' ? 'aarch64' : CPU}/bin/bun`, args: [SMOKE] },
  deno: { package: `@deno/linux-${CPU}-glibc`, binary: `@deno/linux-${CPU}-glibc/deno`, args: ['run', '--allow-all', SMOKE] }
}

const scratch = mkdtempSync(join(tmpdir(), 'extism-host-runtimes-'))

function runtime ({ package: name, binary }) {
  execFileSync('npm', ['install', '--no-audit', '--no-fund', '--force', '--prefix', scratch, name], { stdio: 'ignore' })
  const path = join(scratch, 'node_modules', binary)
  chmodSync(path, 0o755)
  return path
}

function main (args) {
  const isWhole = args.includes('--jest')
  const chosen = args.filter((arg) => arg !== '--jest')
  let failed = 0
  for (const name of chosen.length > 0 ? chosen : Object.keys(RUNTIMES)) {
    const path = runtime(RUNTIMES[name])
    const version = execFileSync(path, ['--version'], { encoding: 'utf8' }).split('\n')[0]
    const runs = [['smoke', RUNTIMES[name].args, LIMIT_MS]]
    if (isWhole && name.startsWith('node')) runs.push(['Jest', [join(ROOT, 'node_modules/jest/bin/jest.js')], 30 * 60_000])
    for (const [suite, args, timeout] of runs) {
      const { status, signal, stdout, stderr } = spawnSync(path, args, { cwd: ROOT, encoding: 'utf8', timeout, killSignal: 'SIGKILL', maxBuffer: 1 << 30 })
      if (status !== 0) failed++
      const reason = status === 0 ? '' : `: ${signal ?? status}\n${stdout}${stderr}`
      console.log(`${name} (${version}), ${suite}: ${status === 0 ? 'passed' : 'failed'}${reason}`)
    }
  }
  console.log(`${failed === 0 ? 'all' : 'not all'} passed`)
  process.exitCode = failed === 0 ? 0 : 1
}

try {
  main(process.argv.slice(2))
} finally {
  rmSync(scratch, { recursive: true })
}
