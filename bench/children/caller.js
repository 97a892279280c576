'use strict'

// A JavaScript thread with its own plugin. A message asks it for a number of seconds and of calls in flight; it makes
// the calls, and replies with the number per second.

const { parentPort, workerData } = require('node:worker_threads')
const { expectedAnswer } = require('../support/article.js')

/** Concurrent calls of the SDK would get each other's outputs, so they run one after the other. */
async function createCall (library) {
  if (library === 'sdk') {
    const { createSayHello, serialized } = require('../support/sdk.js')
    return serialized(await createSayHello())
  }
  const plugin = await require('../support/host.js').createSayHello()
  return (name, input) => plugin.call(name, input)
}

async function measure (call, { seconds, inFlight }) {
  let calls = 0
  const start = performance.now()
  const end = start + seconds * 1e3
  await Promise.all(Array.from({ length: inFlight }, async () => {
    while (performance.now() < end) {
      await call('say_hello', 'Jane Doe')
      calls++
    }
  }))
  return { callsPerSecond: calls / (performance.now() - start) * 1e3 }
}

async function main () {
  const call = await createCall(workerData.library)
  const output = (await call('say_hello', 'Jane Doe')).text()
  if (output !== expectedAnswer('Jane Doe')) throw new Error(`the answer is ${output}`)
  parentPort.on('message', async (task) => parentPort.postMessage(await measure(call, task)))
  parentPort.postMessage('ready')
}

main()
