// A plugin in AssemblyScript, for __test__/toolchains.test.js.
import { Host, Memory, Var } from '@extism/as-pdk'

@external('extism:host/user', 'hostMemoryGet')
declare function hostMemoryGet (key: u64): u64

@external('extism:host/env', 'length')
declare function lengthOf (offset: u64): u64

function abort_ (message: string | null, file: string | null, line: u32, column: u32): void {
  Host.outputString('aborted')
}

export function greet (): i32 {
  const key = Host.inputString()
  const offset = hostMemoryGet(Memory.allocateString(key).offset)
  const value = new Memory(offset, lengthOf(offset)).toString()
  const last = Var.get('last')
  const answer = value + ', after ' + (last === null ? 'nothing' : String.UTF8.decode(last.buffer))
  // Not Host.outputString, which allocates one byte for each UTF-16 code unit.
  Host.output(Uint8Array.wrap(String.UTF8.encode(answer)))
  Var.set('last', Uint8Array.wrap(String.UTF8.encode(key)))
  return 0
}
