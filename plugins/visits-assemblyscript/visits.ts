// Counts visits, and tells who came before: a plugin in AssemblyScript that uses a store.
import { Host, Memory } from '@extism/as-pdk'

@external('extism:host/user', 'hostStoreIncrement')
declare function hostStoreIncrement (key: u64, delta: i64): i64

@external('extism:host/user', 'hostStoreGet')
declare function hostStoreGet (key: u64): i64

@external('extism:host/user', 'hostStoreSet')
declare function hostStoreSet (key: u64, value: u64, ttl: i64): i64

@external('extism:host/env', 'length')
declare function lengthOf (offset: u64): u64

const MISSING: i64 = -1
const DAY: i64 = 24 * 60 * 60 * 1000

function offset (text: string): u64 {
  return Memory.allocateString(text).offset
}

/** Reads a result of the store as text. A negative number is an error, which ends the call. */
function text (answer: i64): string {
  if (answer < 0) throw new Error('the store says ' + answer.toString())
  return answer === 0 ? '' : new Memory(answer, lengthOf(answer)).toString()
}

export function visit (): i32 {
  const name = Host.inputString()
  const number = text(hostStoreIncrement(offset('visits:' + name), 1))
  const last = hostStoreGet(offset('last'))
  const before = last === MISSING ? 'nobody' : text(last)
  text(hostStoreSet(offset('last'), offset(name), DAY))
  // Not Host.outputString, which allocates one byte for each UTF-16 code unit.
  Host.output(Uint8Array.wrap(String.UTF8.encode(`visit ${number} of ${name}, after ${before}`)))
  return 0
}

// A thrown error ends the call with a trap.
function abort_ (message: string | null, file: string | null, line: u32, column: u32): void {}
