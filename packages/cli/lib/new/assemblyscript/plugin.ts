// A plugin for Extism. Each exported function can be called by its name.
import { Host, LogLevel, Memory } from '@extism/as-pdk'

@external('extism:host/env', 'error_set')
declare function setError (offset: u64): void

// Reads its input and sets its output. A result other than 0 fails the call.
export function greet (): i32 {
  const name = Host.inputString()
  if (name.length == 0) {
    setError(Memory.allocateString('whom shall I greet?').offset)
    return 1
  }
  Host.log(LogLevel.Info, `greeting ${name}`)
  // Not Host.outputString, which is wrong for text that is not ASCII.
  Host.output(Uint8Array.wrap(String.UTF8.encode(`Hello, ${name}!`)))
  return 0
}

// AssemblyScript calls this if something is thrown: the call fails with a trap.
function abort_ (message: string | null, file: string | null, line: u32, column: u32): void {}
