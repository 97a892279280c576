'use strict'

// Several processes of one server that share its port: `cluster.js <processes> <server> [argument...]`.
// Connections are handed to them in turn.

const cluster = require('node:cluster')

const [processes, exec, ...args] = process.argv.slice(2)
let listening = 0

cluster.setupPrimary({ exec, args })
cluster.on('listening', () => {
  if (++listening === Number(processes)) process.send('listening')
})
// The others would answer in its place, and nobody would notice.
cluster.on('exit', () => process.exit(1))
for (let i = 0; i < Number(processes); i++) cluster.fork()
