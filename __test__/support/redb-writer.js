'use strict'

// Writes to a store until it is killed: `node redb-writer.js <url> <round> <file of acknowledgements>`.
// What is acknowledged is noted in the file at once, which outlives the process as the store should.

const { openSync, writeSync } = require('node:fs')
const { openStore } = require('../..')

const WRITERS = 12

/** What a key is set to. */
const valueOf = (key) => `${key} `.repeat(1 + key.length * 7 % 40)

async function main (url, round, file) {
  const acknowledgements = openSync(file, 'a')
  const note = (...words) => writeSync(acknowledgements, `${words.join(' ')}\n`)
  const store = await openStore(url)
  note('opened')

  async function write (writer) {
    for (let number = 0; ; number++) {
      const key = `${round}:${writer}:${number}`
      switch (writer % 4) {
        case 0:
          await store.set(key, valueOf(key))
          note('set', key)
          break
        case 1:
          note('counts')
          await store.increment('count')
          note('counted')
          break
        case 2:
          await store.setMany(Array.from({ length: 5 }, (_, place) => [`${key}:${place}`, valueOf(key)]))
          note('many', key)
          break
        default:
          await store.compareAndSwap(key, undefined, valueOf(key))
          await store.delete(key)
          note('deleted', key)
      }
    }
  }
  for (let writer = 0; writer < WRITERS; writer++) write(writer)
}

if (require.main === module) main(...process.argv.slice(2))

module.exports = { valueOf }
