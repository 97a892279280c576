'use strict'

// A program that makes one call: `start.js <sdk | host>` prints the milliseconds from just before loading the library to
// the output.

const { expectedAnswer } = require('../support/article.js')

async function main () {
  const start = performance.now()
  const { createSayHello } = require(`../support/${process.argv[2]}.js`)
  const plugin = await createSayHello()
  const output = (await plugin.call('say_hello', 'Jane Doe')).text()
  const milliseconds = performance.now() - start

  if (output !== expectedAnswer('Jane Doe')) throw new Error(`the answer is ${output}`)
  await plugin.close()
  console.log(JSON.stringify({ milliseconds }))
}

main()
