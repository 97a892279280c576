'use strict'

const { join } = require('node:path')
const { runNode } = require('./support/processes.js')

// The full attack has 200.
const WORKERS = Number(process.env.TERMINATED_WORKERS ?? 30)
const SEED = Number(process.env.TERMINATED_SEED ?? 1)

const testOnLinux = process.platform === 'linux' ? test : test.skip

testOnLinux('worker threads that are terminated at any moment leave no threads, mappings, descriptors or memory', async () => {
  const program = join(__dirname, 'support/terminated-workers.js')
  const { code, signal, output, errors } = await runNode([program, WORKERS, SEED], { timeout: 60_000 + WORKERS * 2_000 })
  expect({ code, signal, errors }).toEqual({ code: 0, signal: null, errors: '' })
  expect(JSON.parse(output)).toMatchObject({ isSettled: true, output: 'still here' })
}, 90_000 + WORKERS * 2_000)
