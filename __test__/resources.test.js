'use strict'

// What happens when the operating system gives no more threads, address space or descriptors. The limits are
// set from outside while the program runs.

const { execFileSync, fork } = require('node:child_process')
const { existsSync, readdirSync, readFileSync, rmSync } = require('node:fs')
const { once } = require('node:events')
const { join } = require('node:path')
const { guest } = require('./support/guest.js')

// A limit can be changed from outside on Linux only.
const canLimit = process.platform === 'linux' && existsSync('/usr/bin/prlimit')
const describeLimits = canLimit ? describe : describe.skip

/** A program that does what it is told, one thing at a time, with its limits in the test's hands. */
async function startProgram (env = {}) {
  const child = fork(join(__dirname, 'support/resources-child.js'), { env: { ...process.env, EXTISM_HOST_CACHE_DIR: 'off', ...env } })
  const [{ directory }] = await once(child, 'message')
  // Only the same user may change a limit.
  const identity = env.SET_UID === undefined ? {} : { uid: Number(env.SET_UID), gid: Number(env.SET_UID) }
  const limit = (name, value) => execFileSync('prlimit', ['--pid', child.pid, `--${name}=${value}:`], identity)
  return {
    limit,
    /** Bytes of address space that it has now. */
    addressSpace: () => 1024 * /VmSize:\s+(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))[1],
    threads: () => readdirSync(`/proc/${child.pid}/task`).length,
    /** The next descriptor that it will get. */
    nextDescriptor () {
      const taken = new Set(readdirSync(`/proc/${child.pid}/fd`))
      let next = 0
      while (taken.has(String(next))) next++
      return next
    },
    /** Resolves with what came of it. */
    async run (what, wasm, options) {
      child.send({ what, wasm: wasm.toString('base64'), options })
      const [answer] = await Promise.race([once(child, 'message'), once(child, 'exit')])
      return answer
    },
    async stop () {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill('SIGKILL')
        await once(child, 'exit')
      }
      rmSync(directory, { recursive: true })
    }
  }
}

const GIBIBYTE = 2 ** 30

describeLimits('a program', () => {
  let program
  let wasm

  beforeAll(async () => { wasm = await guest('many') })

  afterEach(() => program?.stop())

  test('without address space for an instance has OUT_OF_RESOURCES, and opens the plugin when it has some', async () => {
    program = await startProgram()
    program.limit('as', program.addressSpace() + 2 * GIBIBYTE)
    const refused = await program.run('open', wasm)
    expect(refused).toEqual({ code: 'OUT_OF_RESOURCES', message: expect.stringMatching(/no address space.*16 GiB.*ulimit -v/) })
    program.limit('as', 'unlimited')
    expect(await program.run('open', wasm)).toEqual({ output: 'x' })
  })

  test('without address space for another instance serves with the existing ones, and warns its logger', async () => {
    program = await startProgram()
    program.limit('as', program.addressSpace() + 24 * GIBIBYTE)
    const { output, warnings } = await program.run('scale', wasm, { instances: 4 })
    expect(output).toBe('x')
    expect(warnings[0]).toMatch(/^an instance of the plugin could not be started, the others continue to serve: .*OUT_OF_RESOURCES/)
  })

  // Root may have as many threads as it likes, so the program becomes somebody else.
  test('without threads has OUT_OF_RESOURCES, wherever they run out, and opens the plugin when there are some', async () => {
    const isRoot = process.getuid() === 0
    program = await startProgram(isRoot ? { SET_UID: '65534' } : {})
    const codes = new Set()
    for (let more = 0; more < 8 && !codes.has(undefined); more++) {
      program.limit('nproc', program.threads() + more)
      const { code, message } = await program.run('open', wasm)
      codes.add(code)
      if (code !== undefined) expect({ code, message }).toEqual({ code: 'OUT_OF_RESOURCES', message: expect.stringMatching(/cannot start a thread .*ulimit -u/) })
    }
    expect(codes).toContain('OUT_OF_RESOURCES')
    program.limit('nproc', program.threads() + 100)
    expect(await program.run('open', wasm)).toEqual({ output: 'x' })
  })

  test('without file descriptors has OUT_OF_RESOURCES, and opens the plugin when there are some', async () => {
    program = await startProgram()
    // Node loads what it needs for it, too.
    await program.run('write', wasm)
    const codes = new Set()
    for (let more = 0; more < 8 && !codes.has(undefined); more++) {
      program.limit('nofile', program.nextDescriptor() + more)
      const { code, message } = await program.run('openFile', wasm)
      codes.add(code)
      if (code !== undefined) expect({ code, message }).toEqual({ code: 'OUT_OF_RESOURCES', message: expect.stringMatching(/descriptors.*ulimit -n/) })
    }
    expect(codes).toContain('OUT_OF_RESOURCES')
    program.limit('nofile', 1024)
    expect(await program.run('openFile', wasm)).toEqual({ output: 'x' })
  })
})
