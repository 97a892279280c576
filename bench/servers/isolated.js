'use strict'

// server.js with an instance for each call; with the argument `snapshot`, instances start from a snapshot.

const { MemoryStore, precompile } = require('../..')
const { SAY_HELLO, MESSAGES } = require('../support/article.js')
const { buildServer } = require('../../server.js')

const { PORT, HOST, INSTANCES, LOG_LEVEL } = process.env

async function start () {
  const snapshot = process.argv[2] === 'snapshot'
  // Wait for the snapshot, so that the first calls use it, too.
  if (snapshot) await precompile(SAY_HELLO, { useWasi: true, snapshot, timeoutMs: 10_000 })
  const app = await buildServer({
    store: new MemoryStore(MESSAGES),
    plugin: { instances: Number(INSTANCES), isolation: 'call', snapshot },
    logger: { level: LOG_LEVEL || 'info' }
  })
  await app.listen({ port: Number(PORT), host: HOST })
}

start()
