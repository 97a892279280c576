'use strict'

// `memory.js <sdk | worker | host> <number>` prints the resident MiB of a process that has made calls with that many
// instances: as many plugins in the SDK, or one plugin here.

const { setTimeout: sleep } = require('node:timers/promises')
const { expectedAnswer } = require('../support/article.js')

const CALLS_PER_INSTANCE = 32

/** The plugins, and the number of concurrent calls to each. */
async function open (kind, number) {
  if (kind === 'host') {
    const { createSayHello } = require('../support/host.js')
    // Enough calls that every instance gets one, whichever thread is first.
    return { plugins: [await createSayHello({ instances: number })], calls: number * CALLS_PER_INSTANCE }
  }
  const { createSayHello } = require('../support/sdk.js')
  const options = { runInWorker: kind === 'worker' }
  return { plugins: await Promise.all(Array.from({ length: number }, () => createSayHello(options))), calls: 1 }
}

async function main () {
  const [kind, number] = process.argv.slice(2)
  const { plugins, calls } = await open(kind, Number(number))
  await Promise.all(plugins.map(async (plugin) => {
    const outputs = await Promise.all(Array.from({ length: calls }, () => plugin.call('say_hello', 'Jane Doe')))
    for (const output of outputs) {
      if (output.text() !== expectedAnswer('Jane Doe')) throw new Error(`the answer is ${output.text()}`)
    }
  }))
  // Twice, with a pause in between: objects freed by the first collection may hold memory that only the second can free.
  for (let i = 0; i < 2; i++) {
    await sleep(200)
    global.gc()
  }
  console.log(JSON.stringify({ mebibytes: process.memoryUsage().rss / 2 ** 20 }))
  for (const plugin of plugins) await plugin.close()
}

main()
