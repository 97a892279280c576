'use strict'

// Servers that speak the protocol of Redis, and answer SCAN as these tests like.

const { createServer } = require('node:net')
const { once } = require('node:events')
const { openStore } = require('..')

let server
let sockets
let store

beforeEach(() => { sockets = [] })
afterEach(async () => {
  await store?.close()
  for (const socket of sockets) socket.destroy()
  server.close()
})

/** Opens a store whose server goes from one position to the next as `next` says, with a key at each. */
async function openStoreWith (next) {
  const answer = (command) => {
    const [name, position] = command.map((part) => String(part).toUpperCase())
    if (name === 'HELLO') return '-ERR unknown command\r\n'
    if (name !== 'SCAN') return '+OK\r\n'
    const following = String(next(Number(position)))
    const key = `key${position}`
    return `*2\r\n$${following.length}\r\n${following}\r\n*1\r\n$${key.length}\r\n${key}\r\n`
  }
  server = createServer((socket) => {
    sockets.push(socket)
    let text = ''
    socket.on('error', () => {})
    socket.on('data', (chunk) => {
      text += chunk
      for (;;) {
        // Requests are arrays of strings: `*count`, and for each its length and itself.
        const lines = text.split('\r\n')
        const count = Number(lines[0].slice(1))
        if (!text.startsWith('*') || lines.length < 2 + 2 * count) return
        const parts = lines.slice(1, 1 + 2 * count)
        text = lines.slice(1 + 2 * count).join('\r\n')
        socket.write(answer(parts.filter((_, index) => index % 2 === 1)))
      }
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  store = await openStore(`redis://127.0.0.1:${server.address().port}`)
}

async function keys () {
  const all = []
  for await (const key of store.keys()) all.push(key)
  return all
}

test.each([
  ['at the same position', (position) => 7],
  ['in a circle', (position) => position % 5 + 1],
  ['in a circle that begins late', (position) => position < 1_000 ? position + 1 : 900]
])('keys() rejects if the server never ends %s', async (_, next) => {
  await openStoreWith(next)
  await expect(keys()).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE', message: expect.stringMatching(/^the Redis server 127\.0\.0\.1:\d+ never finishes SCAN; check the server$/) })
})

test('keys() goes on while the server gets further', async () => {
  await openStoreWith((position) => position < 3_000 ? position + 1 : 0)
  expect(await keys()).toHaveLength(3_001)
})
