'use strict'

// The article's host function for the command line:
// npx extism-host call plugins/say-hello/say-hello.wasm say_hello --wasi --input Jane --functions examples/article-functions.js

const messages = new Map([['hello', '👋 Hello World 🌍'], ['message', 'I 💜 Extism 😍']])

module.exports = {
  'extism:host/user': {
    hostMemoryGet (context, offset) {
      return messages.get(context.read(offset).text()) ?? ''
    }
  }
}
