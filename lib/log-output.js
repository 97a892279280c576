'use strict'

// Writes a server's log to standard output without ever blocking on its reader. If nobody reads the pipe, pino's own
// destination would keep the process from ending, and buffer lines without limit.

const { writeSync } = require('node:fs')

const MAX_PENDING_BYTES = 1 << 20
const RETRY_MS = 50

/** At exit, wait this long for a reader that makes no progress. */
const MAX_WAIT_AT_EXIT_MS = 1_000
const PAUSE_AT_EXIT_MS = 10

class LogOutput {
  #fd
  /** Lines that wait to be written, and their length. */
  #pending = []
  #pendingBytes = 0
  #lost = 0
  #timer

  /** `fd` must be non-blocking. Node makes standard output so once `process.stdout` has been used. */
  constructor (fd = process.stdout.fd ?? 1) {
    this.#fd = fd
    process.on('exit', () => this.#flushAtExit())
  }

  /** Writes a line now if the reader keeps up, else later. Drops it if too much is pending. */
  write (line) {
    const bytes = Buffer.from(line)
    if (this.#pendingBytes + bytes.length > MAX_PENDING_BYTES) {
      this.#lost++
      return
    }
    this.#pending.push(bytes)
    this.#pendingBytes += bytes.length
    // If lines are pending, the timer writes them in order.
    if (this.#timer === undefined) this.#flush()
  }

  /** Writes as much as possible, and retries the rest later. */
  #flush () {
    this.#timer = undefined
    this.#writePending()
    if (this.#pendingBytes > 0) this.#timer = setTimeout(() => this.#flush(), RETRY_MS).unref()
    else if (this.#lost > 0) this.#reportLost()
  }

  #writePending () {
    if (this.#pending.length > 1) this.#pending = [Buffer.concat(this.#pending)]
    let [bytes] = this.#pending
    try {
      while (bytes?.length > 0) bytes = bytes.subarray(writeSync(this.#fd, bytes))
      this.#pending = []
    } catch ({ code }) {
      // After any other error, such as EPIPE, nobody will read the rest.
      this.#pending = code === 'EAGAIN' ? [bytes] : []
    }
    this.#pendingBytes = this.#pending[0]?.length ?? 0
  }

  #reportLost () {
    const msg = `dropped ${this.#lost} log lines: nobody reads standard output`
    this.#lost = 0
    this.write(`${JSON.stringify({ level: 40, time: Date.now(), pid: process.pid, msg })}\n`)
  }

  #flushAtExit () {
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
