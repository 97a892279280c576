'use strict'

// What must work in every runtime, without Jest: `node smoke.js`. Prints a line for each, and exits with 1 if one fails.

const assert = require('node:assert/strict')
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { Worker, isMainThread, parentPort } = require('node:worker_threads')
const { createPlugin, MemoryStore, openStore } = require('../..')

const SAY_HELLO = join(__dirname, '../../plugins/say-hello/say-hello.wasm')
const MESSAGES = [['hello', '👋 Hello World 🌍'], ['message', 'I 💜 Extism 😍']]
const ANSWER = '👋 Hello Jane Doe\nkey: hello, value: 👋 Hello World 🌍\nkey: message, value: I 💜 Extism 😍'

// (func (export "spin") (loop (br 0)))
const SPIN = Buffer.from('AGFzbQEAAAABBAFgAAADAgEABwgBBHNwaW4AAAoJAQcAA0AMAAsL', 'base64')

const sayHello = (options) => createPlugin(SAY_HELLO, { useWasi: true, store: new MemoryStore(MESSAGES), ...options })

const checks = {
  async 'the article answers' () {
    const plugin = await sayHello()
    assert.equal((await plugin.call('say_hello', 'Jane Doe')).text(), ANSWER)
    await plugin.close()
  },
  async '3,200 calls, 32 in flight' () {
    const plugin = await sayHello({ instances: 2 })
    for (let round = 0; round < 100; round++) {
      const outputs = await Promise.all(Array.from({ length: 32 }, () => plugin.call('say_hello', 'Jane Doe')))
      for (const output of outputs) assert.equal(output.text(), ANSWER)
    }
    await plugin.close()
  },
  async 'a burst of which half is refused, then 32 in flight' () {
    const plugin = await sayHello({ instances: 2, maxQueue: 10_000 })
    const results = await Promise.allSettled(Array.from({ length: 20_000 }, () => plugin.call('say_hello', 'Jane Doe')))
    assert.ok(results.every(({ status, reason }) => status === 'fulfilled' || reason.code === 'QUEUE_FULL'))
    await Promise.all(Array.from({ length: 32 }, () => plugin.call('say_hello', 'Jane Doe')))
    await plugin.close()
  },
  async 'a time-out and an abort end an endless loop' () {
    const plugin = await createPlugin(SPIN)
    await assert.rejects(plugin.call('spin', '', null, { timeoutMs: 50 }), { code: 'TIMEOUT' })
    const controller = new AbortController()
    setTimeout(() => controller.abort(), 50)
    await assert.rejects(plugin.call('spin', '', null, { signal: controller.signal }), { name: 'AbortError' })
    await plugin.close()
  },
  async 'a host function in JavaScript' () {
    const hostMemoryGet = async (context, offset) => context.store(`from JavaScript: ${context.read(offset).text()}`)
    const plugin = await sayHello({ store: undefined, functions: { 'extism:host/user': { hostMemoryGet } } })
    assert.match((await plugin.call('say_hello', 'Jane Doe')).text(), /key: hello, value: from JavaScript: hello/)
    await plugin.close()
  },
  async 'stores in memory and in a file' () {
    const directory = mkdtempSync(join(tmpdir(), 'extism-host-smoke-'))
    for (const url of ['memory:', `redb:${join(directory, 'data.redb')}`]) {
      const store = await openStore(url)
      await store.set('key', 'value')
      assert.equal(Buffer.from(await store.get('key')).toString(), 'value')
      await store.close()
    }
    rmSync(directory, { recursive: true })
  },
  async 'a worker thread, which ends' () {
    const worker = new Worker(__filename)
    const answer = await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
    assert.equal(answer, ANSWER)
    await worker.terminate()
  }
}

async function main () {
  for (const [name, check] of Object.entries(checks)) {
    await check()
    console.log(`ok: ${name}`)
  }
}

async function inWorker () {
  const plugin = await sayHello()
  parentPort.postMessage((await plugin.call('say_hello', 'Jane Doe')).text())
}

// With an open plugin the process ends by itself all the same.
const open = isMainThread ? sayHello().then(main) : inWorker()
open.catch((error) => {
  console.error(error)
  process.exit(1)
})
