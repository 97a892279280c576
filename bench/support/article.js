'use strict'

// The article's plugin, its messages, and its expected output.

const { join } = require('node:path')

const SAY_HELLO = join(__dirname, '../../plugins/say-hello/say-hello.wasm')
const MESSAGES = [['hello', '👋 Hello World 🌍'], ['message', 'I 💜 Extism 😍']]

function expectedAnswer (name) {
  return `👋 Hello ${name}\nkey: hello, value: 👋 Hello World 🌍\nkey: message, value: I 💜 Extism 😍`
}

module.exports = { SAY_HELLO, MESSAGES, expectedAnswer }
