'use strict'

const { isAnyArrayBuffer, isSharedArrayBuffer } = require('node:util').types

/** Returns bytes as a Uint8Array over unshared memory, or `undefined` if the value is not bytes. */
function asBytes (value) {
  let bytes
  if (value instanceof Uint8Array) {
    bytes = value
  } else if (ArrayBuffer.isView(value)) {
    bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
  } else if (isAnyArrayBuffer(value)) {
    bytes = new Uint8Array(value)
  } else {
    return undefined
  }
  // Copied, because another thread could change shared memory during the read.
  return isSharedArrayBuffer(bytes.buffer) ? new Uint8Array(bytes) : bytes
}

module.exports = { asBytes }
