'use strict'

// Uses each of the files that are named as a store, and prints as a line of JSON what came of each: codes, or null.

const { openStore } = require('../..')

async function codeOf (doing) {
  try {
    await doing
    return null
  } catch (error) {
    return error.code === 'STORE_DAMAGED' ? error.code : `${error.code}: ${error.message}`
  }
}

async function use (file) {
  let store
  const opened = await codeOf(openStore(`redb:${file}`).then((opened) => { store = opened }))
  if (store === undefined) return [opened]
  const codes = [opened]
  const operations = [
    () => store.get('key:100'),
    () => store.set('key:100', 'changed'),
    () => store.keys(),
    () => store.setMany(Array.from({ length: 50 }, (_, index) => [`key:${index * 20}`, Buffer.alloc(index * 40)])),
    () => store.increment('count'),
    () => store.set('short-lived', 'x', { ttlMs: 1 }),
    () => store.deleteMany(Array.from({ length: 100 }, (_, index) => `key:${index * 7}`)),
    () => store.set('key:100', Buffer.alloc(100_000)),
    () => store.get('key:500'),
    () => store.close(),
    async () => {
      const again = await openStore(`redb:${file}`)
      await again.set('key:100', 'again')
      await again.close()
    }
  ]
  for (const operation of operations) codes.push(await codeOf(operation()))
  return codes
}

async function main () {
  for (const file of process.argv.slice(2)) {
    console.log(JSON.stringify({ file }))
    console.log(JSON.stringify({ codes: await use(file) }))
  }
}

main()
