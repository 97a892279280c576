'use strict'

// Increments a key, and reports the time of each acknowledgement.

const { openStore } = require('../../index.js')

async function main (url, writes) {
  const store = await openStore(url)
  await store.delete('written')
  for (let number = 1; number <= writes; number++) {
    await store.set('written', String(number))
    process.send(String(process.hrtime.bigint()))
    await new Promise((resolve) => setTimeout(resolve, number % 3))
  }
  await store.close()
  process.disconnect()
}

main(process.argv[2], Number(process.argv[3]))
