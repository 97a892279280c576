'use strict'

// CallContext: a host function's access to the guest that called it.

const { NO_CALL } = require('../binding.js')
const { asBytes } = require('./bytes.js')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { LEVELS, SILENT } = require('./logging.js')
const { PluginOutput } = require('./plugin-output.js')

// Only `host-functions.js` may construct a CallContext.
const SECRET = Symbol('extism-host')

const MAX_OFFSET = 0xFFFF_FFFF
const MAX_BLOCK_BYTES = 0x7FFF_FFFF

const encoder = new TextEncoder()

function ended () {
  return codedError('CONTEXT_ENDED', 'this CallContext has ended: its host function has returned, or its call has ended')
}

function asContent (content, what) {
  if (typeof content === 'string') return encoder.encode(content)
  const bytes = asBytes(content)
  if (bytes === undefined) throw invalidArgument(`${what} must be a string or bytes, not ${describe(content)}`)
  return bytes
}

function asName (name) {
  if (typeof name !== 'string') throw invalidArgument(`the name of a variable must be a string, not ${describe(name)}`)
  return name
}

/** Returns an offset as a number, or -1 if no block can have it. */
function asOffset (offset) {
  if (typeof offset !== 'bigint' && !Number.isInteger(offset)) {
    throw invalidArgument(`an offset must be a bigint, not ${describe(offset)}`)
  }
  return offset >= 0 && offset <= MAX_OFFSET ? Number(offset) : -1
}

function outputOf (bytes) {
  return new PluginOutput(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

class CallContext {
  #boundary
  #hostCall
  #blocks
  #pluginState
  #resets
  #hostContext
  #ending
  #onCallEnd

  constructor (secret, boundary, hostCall, blocks, pluginState, hostContext) {
    if (secret !== SECRET) throw invalidArgument('CallContext cannot be constructed: it is the first argument of host functions')
    this.#boundary = boundary
    this.#hostCall = hostCall
    this.#blocks = blocks
    this.#pluginState = pluginState
    this.#resets = pluginState.resets
    this.#hostContext = hostContext
  }

  hostContext () {
    return this.#hostContext
  }

  /** Made when it is first read: most host functions never do. */
  get signal () {
    if (this.#ending === undefined) {
      this.#ending = new AbortController()
      if (this.#hostCall === NO_CALL) this.#ending.abort(ended())
    }
    return this.#ending.signal
  }

  get logLevel () {
    return LEVELS[this.#pluginState.level] ?? SILENT
  }

  alloc (size) {
    const length = typeof size === 'bigint' ? Number(size) : size
    if (!Number.isSafeInteger(length) || length < 0) {
      throw invalidArgument(`the size of a block must be a non-negative whole number, not ${typeof size === 'number' ? size : describe(size)}`)
    }
    if (length > MAX_BLOCK_BYTES) throw codedError('OUT_OF_MEMORY', `a block can have at most ${MAX_BLOCK_BYTES} bytes, not ${length}`)
    return this.#blockOffset(this.#boundary.allocate(this.#hostCall, length), length)
  }

  store (content) {
    const bytes = typeof content === 'string' ? content : asContent(content, 'the content of a block')
    return this.#blockOffset(this.#boundary.store(this.#hostCall, bytes), Buffer.byteLength(bytes))
  }

  #blockOffset (offset, length) {
    if (offset < 0) throw ended()
    if (offset === 0 && length > 0) throw codedError('OUT_OF_MEMORY', `the plugin's memory has no space for a block of ${length} bytes`)
    return BigInt(offset)
  }

  /** Whether the plugin was reset since this host call began; its blocks are gone then. */
  get #isReset () {
    return this.#pluginState.resets !== this.#resets
  }

  read (offset) {
    const start = asOffset(offset)
    if (this.#isReset) return null
    const block = this.#blocks?.find((block) => block.offset === start)
    if (block !== undefined) return new PluginOutput(block.buffer, block.start, block.length)
    const bytes = this.#boundary.read(this.#hostCall, Math.max(start, 0))
    if (bytes === null) throw ended()
    return bytes.length === 0 ? null : outputOf(bytes)
  }

  length (offset) {
    const start = asOffset(offset)
    if (this.#isReset) return 0n
    const length = this.#boundary.length(this.#hostCall, Math.max(start, 0))
    if (length < 0) throw ended()
    return BigInt(length)
  }

  setError (error) {
    const message = error instanceof Error ? error.message : error ?? ''
    if (!this.#boundary.setError(this.#hostCall, asContent(message, 'an error'))) throw ended()
  }

  getVariable (name) {
    const value = this.#boundary.getVariable(this.#hostCall, asName(name))
    if (value === null) throw ended()
    return value === undefined ? null : outputOf(value)
  }

  setVariable (name, value) {
    const refused = this.#boundary.setVariable(this.#hostCall, asName(name), asContent(value, 'the value of a variable'))
    if (refused === null) throw ended()
    if (refused !== undefined) throw codedError('VARIABLES_FULL', refused)
  }

  deleteVariable (name) {
    if (!this.#boundary.deleteVariable(this.#hostCall, asName(name))) throw ended()
  }

  /** Counts an operation of a guest on a connection, for the plugin's `stats()`. */
  static countConnectorCall (context, connector, operation, outcome) {
    context.#pluginState.connectorCalls.add(connector, operation, outcome)
  }

  /**
   * Calls `listener`, instead of the one before, if the call ends before the host function returns. `undefined` removes it. An
   * AbortSignal takes several microseconds.
   */
  static onCallEnd (context, listener) {
    context.#onCallEnd = listener
  }

  /** Called when the host function has returned, or with a function for the reason why its call ended before that. */
  static end (context, reason) {
    context.#hostCall = NO_CALL
    context.#blocks = undefined
    if (reason === undefined) return
    if (context.#ending !== undefined) context.#ending.abort(reason())
    context.#onCallEnd?.()
  }
}

module.exports = { CallContext, SECRET }
