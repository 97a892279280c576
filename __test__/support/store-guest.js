'use strict'

// The guest `store.wat`, and what passes between it and JavaScript.

const { createPlugin } = require('../..')
const { guest } = require('./guest.js')

/** Bytes as an argument: what was text is UTF-8. */
function argument (value) {
  const head = Buffer.alloc(9)
  if (typeof value === 'number' || typeof value === 'bigint') {
    head.writeBigInt64LE(BigInt(value), 1)
    return head
  }
  const bytes = Buffer.from(value)
  head[0] = 1
  head.writeBigInt64LE(BigInt(bytes.length), 1)
  return Buffer.concat([head, bytes])
}

/** A list as guests have it; `undefined` is a missing item. */
function list (items) {
  return Buffer.concat(items.flatMap((item) => {
    const length = Buffer.alloc(4)
    const bytes = Buffer.from(item ?? '')
    length.writeUInt32LE(item === undefined ? 0xFFFF_FFFF : bytes.length)
    return [length, bytes]
  }))
}

/** The items of a list, as text. */
function items (bytes) {
  const items = []
  for (let at = 0; at < bytes.length;) {
    const length = bytes.readUInt32LE(at)
    at += 4
    items.push(length === 0xFFFF_FFFF ? undefined : bytes.toString('utf8', at, at + length))
    if (length !== 0xFFFF_FFFF) at += length
  }
  return items
}

/**
 * Opens the guest. Its `run(name, ...args)` calls a function with strings, bytes and numbers, and resolves
 * to the bytes that it returns, or the number. An AbortSignal among them is the call's.
 */
async function openStoreGuest (options) {
  const plugin = await createPlugin(await guest('store'), options)
  return {
    plugin,
    async run (name, ...args) {
      const signal = args.find((value) => value instanceof AbortSignal)
      const values = args.filter((value) => value !== signal)
      const result = await plugin.call(name, Buffer.concat(values.map(argument)), null, { signal })
      const output = Buffer.from(result.bytes())
      if (output.length > 8) return output.subarray(8)
      return Number(output.readBigInt64LE())
    }
  }
}

module.exports = { items, list, openStoreGuest }
