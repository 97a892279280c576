'use strict'

// Several processes of one server that share its port: `cluster.js <processes> <server> [argument...]`.
// The processes get connections in turn.

const cluster = require('node:cluster')

const [processes, exec, ...args] = process.argv.slice(2)
let listening = 0

cluster.setupPrimary({ exec, args })
cluster.on('listening', () => {
  if (++listening === Number(processes)) process.send('listening')
})
// If a process ends, the others would take over unnoticed and spoil the result.
cluster.on('exit', () => process.exit(1))
for (let i = 0; i < Number(processes); i++) cluster.fork()
