'use strict'

// Publishes as many messages as each line of standard input says, with a subject for answers if one is given.

const { createInterface } = require('node:readline')
const { connect } = require('@nats-io/transport-node')

async function main ([url, subject, text, reply]) {
  const connection = await connect({ servers: url })
  console.log('ready')
  for await (const line of createInterface({ input: process.stdin })) {
    for (let left = Number(line); left > 0; left--) {
      connection.publish(subject, text, { reply })
      if (left % 500 === 0) await connection.flush()
    }
    await connection.flush()
  }
}

main(process.argv.slice(2))
