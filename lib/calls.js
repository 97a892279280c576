'use strict'

// The JavaScript end of the boundary; `src/binding/boundary.rs` is the other. Calls leave with their
// input in `inbox`, and come back many at a time: `settle` finds them as numbers in `header`, with
// their bytes in `shared`, or in `apart` where they are too long for it.

const { setImmediate } = require('node:timers')
const { markAsUntransferable } = require('node:worker_threads')
const binding = require('../binding.js')
const { codedError } = require('./errors.js')
const { PluginOutput } = require('./plugin-output.js')

const INBOX_BYTES = 8_192
const SHARED_BYTES = 8_192
// What is in `header`: how many calls there are and whether there are more; then for each call its
// number, its code (0 where it succeeded), the offset of its bytes in `shared` and their length.
const SUMMARY = 2
const ITEM = 4
const MAX_ITEMS = 64
// What the start of a call can ask for: to wake a thread, or to take results that are there already.
const WAKE = 1
const TAKE = 2
/** In place of an offset: the next value of `apart`. */
const APART = 0xFFFF_FFFF

const CODES = binding.errorCodes()

const encoder = new TextEncoder()
const decoder = new TextDecoder()

// These two are nobody else's: the other side keeps their addresses.
const inbox = new Uint8Array(INBOX_BYTES)
const header = new Uint32Array(SUMMARY + ITEM * MAX_ITEMS)

const apart = []
let shared = newShared()
let used = 0

const boundary = new binding.Boundary(settle, inbox)
const take = boundary.taker(header)

// What is unfinished, by its number. A number is used again once the other side has finished with
// it; for an aborted call that is later than its promise is settled.
const calls = []
const freeNumbers = []
let unfinished = 0

function newShared () {
  const bytes = new Uint8Array(SHARED_BYTES)
  // Who transfers one output's memory to a worker must not take the others' away.
  markAsUntransferable(bytes.buffer)
  return bytes
}

/**
 * Starts something of a native plugin that ends with a completion of the number that `start` is
 * given, or when `signal` is aborted, whichever is first. Keeps the native plugin until then: when
 * nobody has it, what it does is interrupted.
 */
function complete (native, start, signal) {
  return new Promise((resolve, reject) => {
    const number = freeNumbers.pop() ?? calls.length
    const call = { native, resolve, reject, signal, abort: undefined }
    if (signal !== undefined) {
      call.abort = () => {
        native.cancel(number)
        reject(signal.reason)
      }
      signal.addEventListener('abort', call.abort, { once: true })
    }
    calls[number] = call
    unfinished++
    try {
      if (!isKeptAlive) keepAlive(true)
      start(number)
    } catch (error) {
      // It has not started: nothing will come of it.
      forget(number)
      reject(error)
    }
  })
}

function forget (number) {
  const call = calls[number]
  calls[number] = undefined
  freeNumbers.push(number)
  unfinished--
  call.signal?.removeEventListener('abort', call.abort)
  return call
}

let isSettling = false
let hasMore = false

/** Settles what is finished; the other side calls it when there is something. */
function settle () {
  hasMore = true
  // Called by a listener of a signal, say: the loop below goes on.
  if (isSettling) return
  isSettling = true
  while (hasMore) {
    take(shared, used, apart)
    hasMore = header[1] !== 0
    const end = SUMMARY + ITEM * header[0]
    for (let at = SUMMARY; at < end; at += ITEM) {
      settleOne(header[at], header[at + 1], header[at + 2], header[at + 3])
    }
    apart.length = 0
    if (hasMore) {
      shared = newShared()
      used = 0
    }
  }
  isSettling = false
  if (unfinished === 0) afterwards.then(letGo)
}

function settleOne (number, code, offset, length) {
  const call = forget(number)
  let buffer = shared.buffer
  if (offset === APART) {
    buffer = apart.shift()
    if (buffer instanceof binding.Plugin) return call.resolve(buffer)
    offset = 0
    length = buffer.byteLength
  } else {
    used = offset + length
  }
  if (code !== 0) {
    const message = decoder.decode(new Uint8Array(buffer, offset, length))
    call.reject(codedError(CODES[code - 1], message))
  } else {
    call.resolve(length === 0 ? null : new PluginOutput(buffer, offset, length))
  }
}

const afterwards = Promise.resolve()
let isKeptAlive = false

function keepAlive (alive) {
  boundary.keepAlive(alive)
  isKeptAlive = alive
}

/** Runs after those who awaited the last calls, which often go on with the next. */
function letGo () {
  if (unfinished === 0 && isKeptAlive) keepAlive(false)
}

const toBeWoken = []

/**
 * Wakes a thread of a plugin. Where others are busy with calls, that is done once after all calls
 * that this turn of the event loop has for it: to wake a thread costs more than to queue a call, and
 * once it is awake it finds all of them.
 */
function wake (native) {
  if (unfinished === 1) return native.wake()
  if (toBeWoken.length === 0) setImmediate(wakeAll)
  if (!toBeWoken.includes(native)) toBeWoken.push(native)
}

function wakeAll () {
  for (const native of toBeWoken) native.wake()
  toBeWoken.length = 0
}

/** How many calls in a row may be settled before the event loop has turned. */
const MAX_SETTLED_AT_ONCE = 32
let settledAtOnce = 0

/**
 * Settles what is finished already, at once; or, now and then, after the event loop has turned: who
 * awaits calls one after the other would otherwise keep it from ever turning.
 */
function settleSoon () {
  if (++settledAtOnce < MAX_SETTLED_AT_ONCE) return settle()
  settledAtOnce = 0
  setImmediate(settle)
}

/** What starts calls of a native plugin. */
function caller (native) {
  const call = native.caller(boundary)

  /** Starts a call; 0 milliseconds stand for the plugin's own limit. */
  return function start (number, exportNumber, input, timeoutMs) {
    let then
    if (input === undefined) {
      then = call(number, exportNumber, 0, timeoutMs)
    } else if (typeof input === 'string' && input.length * 3 <= INBOX_BYTES) {
      then = call(number, exportNumber, encoder.encodeInto(input, inbox).written, timeoutMs)
    } else if (input.length <= INBOX_BYTES && typeof input !== 'string') {
      inbox.set(input)
      then = call(number, exportNumber, input.length, timeoutMs)
    } else {
      then = native.callWith(number, exportNumber, input, timeoutMs)
    }
    if (then === WAKE) wake(native)
    else if (then === TAKE) settleSoon()
  }
}

/** Loads a plugin and resolves to its native part. */
function open (options, store) {
  return complete(undefined, (number) => binding.openPlugin(number, options, store, boundary))
}

/** Fills the compile cache with what such a plugin needs. */
function fillCache (options) {
  return complete(undefined, (number) => binding.precompile(number, options, boundary))
}

module.exports = { complete, caller, fillCache, open }
