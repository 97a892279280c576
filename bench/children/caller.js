'use strict'

// A JavaScript thread with a plugin of its own. Asked for so many seconds and calls in flight, it
// makes calls, and answers how many it made a second.

const { parentPort, workerData } = require('node:worker_threads')
const { expectedAnswer } = require('../support/article.js')

/** The SDK's calls wait for each other: in flight together, they get each other's answers. */
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
