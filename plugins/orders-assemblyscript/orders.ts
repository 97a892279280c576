// Sells a product: what a plugin does with a database and a broker, in AssemblyScript.

import { Host, Memory } from '@extism/as-pdk'

@external('extism:host/user', 'hostQuery')
declare function hostQuery (request: u64): u64

@external('extism:host/user', 'hostExecute')
declare function hostExecute (request: u64): u64

@external('extism:host/user', 'hostPublish')
declare function hostPublish (request: u64): u64

@external('extism:host/user', 'hostRequest')
declare function hostRequest (request: u64): u64

@external('extism:host/env', 'length')
declare function lengthOf (offset: u64): u64

/** Gives a request to a function of the host, and returns the reply. A reply that begins with {"error" is a failure. */
function call (hostFunction: (request: u64) => u64, request: string): string {
  const block = Memory.allocateString(request)
  const offset = hostFunction(block.offset)
  const reply = new Memory(offset, lengthOf(offset))
  const text = reply.toString()
  block.free()
  reply.free()
  return text
}

export function order (): i32 {
  const id = I32.parseInt(Host.inputString())
  const found = call((request: u64) => hostQuery(request), `{"connection":"db","statement":"productById","params":[${id}]}`)
  // A message, and its answer, are what follows the first line.
  const stock = call((request: u64) => hostRequest(request), `{"connection":"events","subject":"stock.${id}"}\nhow many?`)
  const answer = stock.slice(stock.indexOf('\n') + 1)
  const sold = call((request: u64) => hostExecute(request), `{"connection":"db","statement":"sell","params":[${id}]}`)
  const published = call((request: u64) => hostPublish(request), '{"connection":"events","subject":"orders.new"}\n' + found)
  const refused = call((request: u64) => hostPublish(request), '{"connection":"events","subject":"invoices.new"}\n' + found)
  Host.output(Uint8Array.wrap(String.UTF8.encode(`${found}\n${answer}\n${sold}\n${published}\n${refused}`)))
  return 0
}

function abort_ (message: string | null, file: string | null, line: u32, column: u32): void {}
