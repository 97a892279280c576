'use strict'

// `idle.js <none | sdk | host> <idle | trickle> <seconds>` prints the CPU time of the process in milliseconds per
// second, including all threads: with an idle plugin, or with 100 calls a second, and then also the median microseconds
// of a call. With `none`, the timers are the same, and there is no plugin.

const { setTimeout: sleep } = require('node:timers/promises')
const { median } = require('../support/measure.js')

const CALLS_PER_SECOND = 100

async function createCall (library) {
  if (library === 'none') return undefined
  const plugin = await require(`../support/${library}.js`).createSayHello()
  return () => plugin.call('say_hello', 'Jane Doe')
}

/**
 * Starts each call when it is due, not a fixed time after the previous one, so that the rate stays 100 a second. Returns
 * the microseconds of each call.
 */
async function trickle (call, seconds) {
  const times = []
  const start = performance.now()
  for (let i = 1; i <= seconds * CALLS_PER_SECOND; i++) {
    await sleep(start + i / CALLS_PER_SECOND * 1e3 - performance.now())
    if (call === undefined) continue
    const before = performance.now()
    await call()
    times.push((performance.now() - before) * 1e3)
  }
  return times
}

async function main () {
  const [library, mode, seconds] = process.argv.slice(2)
  const call = await createCall(library)
  // Let start-up finish: code gets compiled, and garbage collected.
  await trickle(call, 1)
  await sleep(500)

  const start = performance.now()
  const before = process.cpuUsage()
  const times = mode === 'trickle' ? await trickle(call, Number(seconds)) : await sleep(Number(seconds) * 1e3, [])
  const { user, system } = process.cpuUsage(before)
  const took = (performance.now() - start) / 1e3

  console.log(JSON.stringify({
    cpuMillisecondsPerSecond: (user + system) / 1e3 / took,
    callMicroseconds: times.length === 0 ? undefined : median(times)
  }))
  // An open plugin does not keep the process alive, so it ends here.
}

main()
