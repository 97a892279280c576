'use strict'

/** Escapes characters that could do something to a terminal: names in a module can be anything. */
const printable = (text) => text.replace(/\p{C}/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`)

module.exports = { printable }
