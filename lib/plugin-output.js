'use strict'

const { codedError } = require('./errors.js')

const decoder = new TextDecoder()

const getter = (name) => Object.getOwnPropertyDescriptor(DataView.prototype, name).get
const bufferOf = getter('buffer')
const byteOffsetOf = getter('byteOffset')
const byteLengthOf = getter('byteLength')

/** Copies of outputs in shared memory, made when `buffer` is read. */
const ownBuffers = new WeakMap()

/**
 * A plugin's output, as a read-only view. Short outputs share memory with others, which must not leak: `buffer` holds
 * this output and nothing else.
 */
class PluginOutput extends DataView {
  get buffer () {
    const buffer = bufferOf.call(this)
    const length = byteLengthOf.call(this)
    if (buffer.byteLength === length) return buffer
    let own = ownBuffers.get(this)
    if (own === undefined) {
      const offset = byteOffsetOf.call(this)
      own = buffer.slice(offset, offset + length)
      ownBuffers.set(this, own)
    }
    return own
  }

  get byteOffset () {
    return 0
  }

  text () {
    return decoder.decode(this)
  }

  string () {
    return this.text()
  }

  json () {
    return JSON.parse(this.text())
  }

  // Faster than a view of `buffer`, and the copy is not kept.
  bytes () {
    const buffer = bufferOf.call(this)
    const length = byteLengthOf.call(this)
    if (buffer.byteLength === length) return new Uint8Array(buffer)
    return new Uint8Array(buffer, byteOffsetOf.call(this), length).slice()
  }

  arrayBuffer () {
    return this.buffer
  }
}

for (const name of Object.getOwnPropertyNames(DataView.prototype)) {
  if (!name.startsWith('set')) continue
  Object.defineProperty(PluginOutput.prototype, name, {
    configurable: true,
    writable: true,
    value () {
      throw codedError('INVALID_ARGUMENT', `a PluginOutput is read-only: ${name} cannot be called`)
    }
  })
}

module.exports = { PluginOutput }
