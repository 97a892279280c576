'use strict'

// Opens and calls plugins as the test says that has forked it; see `resources.test.js`.

const { mkdtempSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { createPlugin } = require('../..')

if (process.env.SET_UID !== undefined) {
  process.setgid(Number(process.env.SET_UID))
  process.setuid(Number(process.env.SET_UID))
}

const directory = mkdtempSync(join(tmpdir(), 'extism-host-resources-'))
const file = join(directory, 'plugin.wasm')

const actions = {
  async open (wasm, options) {
    const plugin = await createPlugin(wasm, { timeoutMs: 30_000, ...options })
    const output = await plugin.call('echo', 'x')
    await plugin.close()
    return { output: output.text() }
  },

  openFile: (_, options) => actions.open(file, options),

  async write (wasm) {
    writeFileSync(file, wasm)
    return actions.openFile()
  },

  /** Calls until an instance could not be started. */
  async scale (wasm, options) {
    const warnings = []
    const logger = { trace () {}, debug () {}, info () {}, warn: (message) => warnings.push(message), error () {} }
    const plugin = await createPlugin(wasm, { ...options, logger, logLevel: 'warn' })
    let output
    for (let i = 0; i < 100 && warnings.length === 0; i++) {
      [output] = await Promise.all(Array.from({ length: 20 }, () => plugin.call('echo', 'x')))
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    await plugin.close()
    return { output: output.text(), warnings }
  }
}

process.on('message', async ({ what, wasm, options }) => {
  const bytes = Buffer.from(wasm, 'base64')
  const answer = await actions[what](bytes, options).catch(({ code, message }) => ({ code, message }))
  process.send(answer)
})
process.on('disconnect', () => process.exit())

// The test removes the directory: it may kill this process.
process.send({ directory })
