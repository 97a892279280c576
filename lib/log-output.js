'use strict'

// Where the log of a server goes: standard output, without ever waiting for whoever reads it. A pipe that nobody
// reads would keep pino's own destination from ending the process, and its lines would fill the memory.

const { writeSync } = require('node:fs')

const MAX_PENDING_BYTES = 1 << 20
const RETRY_MS = 50

/** How long the end of the process waits for a reader that does not read on. */
const MAX_WAIT_AT_EXIT_MS = 1_000
const PAUSE_AT_EXIT_MS = 10

class LogOutput {
  #fd
  /** What waits to be written, and how many bytes that is. */
  #pending = []
  #pendingBytes = 0
  #lost = 0
  #timer

  /** `fd` must not block. Node sees to that for standard output once `process.stdout` has been used. */
  constructor (fd = process.stdout.fd ?? 1) {
    this.#fd = fd
    process.on('exit', () => this.#end())
  }

  /** Writes a line now if the reader keeps up, else later. */
  write (line) {
    const bytes = Buffer.from(line)
    if (this.#pendingBytes + bytes.length > MAX_PENDING_BYTES) {
      this.#lost++
      return
    }
    this.#pending.push(bytes)
    this.#pendingBytes += bytes.length
    // What waits already is written by the timer.
    if (this.#timer === undefined) this.#flush()
  }

  /** Writes what can be written; what is left is tried again later. */
  #flush () {
    this.#timer = undefined
    this.#writePending()
    if (this.#pendingBytes > 0) this.#timer = setTimeout(() => this.#flush(), RETRY_MS).unref()
    else if (this.#lost > 0) this.#tellLost()
  }

  #writePending () {
    if (this.#pending.length > 1) this.#pending = [Buffer.concat(this.#pending)]
    let [bytes] = this.#pending
    try {
      while (bytes?.length > 0) bytes = bytes.subarray(writeSync(this.#fd, bytes))
      this.#pending = []
    } catch ({ code }) {
      // Nobody will ever read the rest, as with EPIPE.
      this.#pending = code === 'EAGAIN' ? [bytes] : []
    }
    this.#pendingBytes = this.#pending[0]?.length ?? 0
  }

  #tellLost () {
    const msg = `${this.#lost} lines of the log were lost, as standard output was not read`
    this.#lost = 0
    this.write(`${JSON.stringify({ level: 40, time: Date.now(), pid: process.pid, msg })}\n`)
  }

  #end () {
    clearTimeout(this.#timer)
    const pause = new Int32Array(new SharedArrayBuffer(4))
    for (let waited = 0; waited < MAX_WAIT_AT_EXIT_MS; waited += PAUSE_AT_EXIT_MS) {
      const before = this.#pendingBytes
      this.#writePending()
      if (this.#pendingBytes === 0) return
      if (this.#pendingBytes < before) waited = 0
      Atomics.wait(pause, 0, 0, PAUSE_AT_EXIT_MS)
    }
  }
}

module.exports = { LogOutput }
