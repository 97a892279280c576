'use strict'

// The plugin in the JavaScript SDK: in the foreground, or, with the argument `worker`, in a worker.

const { createSayHello, serialized } = require('../support/sdk.js')
const { serve } = require('./service.js')

const CALLS_PER_RESET = 10

/** A worker never drops the blocks of past calls, and each call gets slower, until it is reset. */
function resetNowAndThen (plugin) {
  let calls = 0
  return {
    async call (name, input) {
      const output = await plugin.call(name, input)
      if (++calls % CALLS_PER_RESET === 0) await plugin.reset()
      return output
    }
  }
}

async function start () {
  const runInWorker = process.argv[2] === 'worker'
  const plugin = await createSayHello({ runInWorker })
  // In the foreground, calls do not collide here, because each request arrives in its own turn of the event loop.
  const call = runInWorker
    ? serialized(resetNowAndThen(plugin))
    : (name, input) => plugin.call(name, input)
  await serve(async (body) => (await call('say_hello', body)).arrayBuffer())
}

start()
