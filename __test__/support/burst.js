'use strict'

// Has a plugin echo a burst of calls with a megabyte each, and prints as JSON what memory that took, and what is
// left of it when it has been given back, or after half a minute.

const { setTimeout: sleep } = require('node:timers/promises')
const { createPlugin } = require('../..')
const { guest } = require('./guest.js')

const CALLS = 300
const BYTES = 2 ** 20

const megabytes = () => process.memoryUsage.rss() >> 20

async function main () {
  const plugin = await createPlugin(await guest('many'), { maxQueueBytes: 2 * CALLS * BYTES })
  await plugin.call('echo', Buffer.alloc(BYTES))
  const before = megabytes()
  let peak = 0
  for (let round = 0; round < 2; round++) {
    // Of different lengths, so that the allocator finds no place that fits exactly.
    const inputs = Array.from({ length: CALLS }, (_, index) => Buffer.alloc(BYTES - index * 977))
    const outputs = await Promise.all(inputs.map((input) => plugin.call('echo', input)))
    peak = Math.max(peak, megabytes())
    outputs.length = inputs.length = 0
  }
  let after
  for (let waits = 0; waits < 60; waits++) {
    global.gc()
    after = megabytes()
    if (after < before + (peak - before) / 4) break
    await sleep(500)
  }
  await plugin.close()
  console.log(JSON.stringify({ before, peak, after }))
}

main()
