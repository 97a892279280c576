'use strict'

// A program: `node count-through-guests.js URL writers times`. So many instances of a guest add 1 to the same key of a
// store so many times, all at once. It prints `[0,0,…]`, what each says in the end.

const { openStore } = require('../..')
const { openStoreGuest } = require('./store-guest.js')

async function main ([url, writers, times]) {
  const store = await openStore(url)
  const { plugin, run } = await openStoreGuest({ store: { store, access: 'write' }, instances: Number(writers), eager: true })
  const ends = Array.from({ length: Number(writers) }, () => run('incrementOften', 'count', Number(times)))
  console.log(JSON.stringify(await Promise.all(ends)))
  await plugin.close()
  await store.close()
}

main(process.argv.slice(2))
