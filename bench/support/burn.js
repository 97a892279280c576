'use strict'

/** Encodes signed LEB128, the operand of i64.const. */
function leb128 (number) {
  const bytes = []
  let rest = BigInt(number)
  for (;;) {
    const low = Number(rest & 0x7Fn)
    rest >>= 7n
    // Bit 6 of the last byte is the sign.
    if (rest === 0n && (low & 0x40) === 0) return [...bytes, low]
    bytes.push(low | 0x80)
  }
}

/** Prefixes bytes with their length, which takes one byte because all of ours are shorter than 128. */
function sized (bytes) {
  return [bytes.length, ...bytes]
}

/** Builds a guest whose only function, `burn`, counts down from `iterations` and succeeds. */
function burnGuest (iterations) {
  const code = [
    0x01, 0x01, 0x7E, // one local: i64
    0x42, ...leb128(iterations), 0x21, 0x00, // i64.const iterations, local.set 0
    0x03, 0x40, // loop
    0x20, 0x00, 0x42, 0x01, 0x7D, 0x22, 0x00, // local.get 0, i64.const 1, i64.sub, local.tee 0
    0x50, 0x45, 0x0D, 0x00, // i64.eqz, i32.eqz, br_if 0
    0x0B, // end of the loop
    0x41, 0x00, 0x0B // i32.const 0, end: Extism takes 0 as success
  ]
  return Uint8Array.from([
    0x00, 0x61, 0x73, 0x6D, 0x01, 0x00, 0x00, 0x00, // "\0asm", version 1
    0x01, ...sized([1, 0x60, 0x00, 0x01, 0x7F]), // types: () -> i32
    0x03, ...sized([1, 0x00]), // functions: one, of type 0
    0x07, ...sized([1, ...sized([...Buffer.from('burn')]), 0x00, 0x00]), // exports: function 0
    0x0A, ...sized([1, ...sized(code)]) // code
  ])
}

module.exports = { burnGuest }
