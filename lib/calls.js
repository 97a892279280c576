'use strict'

// The JavaScript end of the boundary; `src/binding` is the other. Calls leave with their
// input in `inbox`, and come back many at a time: `settle` finds them as numbers in `header`, with
// their bytes in `shared`, or in `apart` where they are too long for it.

const { setImmediate } = require('node:timers')
const binding = require('../binding.js')
const { codedError } = require('./errors.js')
const { hostCallOf, isStandingStill, run, tables } = require('./host-functions.js')
const { log } = require('./logging.js')
const { PluginOutput } = require('./plugin-output.js')
const { watchSignalListeners } = require('./signals.js')

const INBOX_BYTES = 8_192
const SHARED_BYTES = 8_192
// What is in `header`. First what this side says: of a call its number, its export, how many bytes of
// `inbox` are its input, its limit in milliseconds (0 for the plugin's), whether it is alone, whether
// its result may be taken at once; and how many bytes of `shared` are used.
const NUMBER = 0
const EXPORT = 1
const LENGTH = 2
const TIMEOUT = 3
const IS_ALONE = 4
const MAY_TAKE = 5
const USED = 6
// Then what the other side says: how many calls it has taken, and whether there are more.
const COUNT = 7
const HAS_MORE = 8
// And for each call its number, its code (0 where it succeeded), the offset of its bytes in `shared`
// and their length (`AS_IT_IS` where what is in `apart` is no bytes).
const ITEMS = 9
const ITEM = 4
const MAX_ITEMS = 64
// What comes of a call at once: a thread is to be woken; its result has been taken; there are results
// to be taken.
const WAKE = 1
const TAKEN = 2
const TAKE = 3
/** In place of an offset: the next value of `apart`. */
const APART = 0xFFFF_FFFF
/** In place of a length. */
const AS_IT_IS = 1
// In place of a code: a host function is called, or a plugin has a message for its logger. The bytes
// are what it is about, the number the call that it is part of, or `NO_CALL`.
const HOST_CALL = 0xFFFF_FFFF
const LOG = 0xFFFF_FFFE
const NO_CALL = 0xFFFF_FFFF

const CODES = binding.errorCodes()
const TRAP = CODES.indexOf('TRAP') + 1
const HOST_FUNCTION_ERROR = CODES.indexOf('HOST_FUNCTION_ERROR') + 1

const encoder = new TextEncoder()
const decoder = new TextDecoder()

// These two are nobody else's: the other side keeps their addresses.
const inbox = new Uint8Array(INBOX_BYTES)
const header = new Uint32Array(ITEMS + ITEM * MAX_ITEMS)

const apart = []
// Made when the first thing has been started: loading what it needs takes two milliseconds, in which that proceeds.
let shared

const boundary = new binding.Boundary(settle, inbox, header)
const take = boundary.taker()

// What is unfinished, by its number. A number is used again once the other side has finished with
// it; for an aborted call that is later than its promise is settled.
const calls = []
const freeNumbers = []
let unfinished = 0

function newShared () {
  const { markAsUntransferable } = require('node:worker_threads')
  const bytes = new Uint8Array(SHARED_BYTES)
  // Who transfers one output's memory to a worker must not take the others' away.
  markAsUntransferable(bytes.buffer)
  return bytes
}

/**
 * Starts something of a native plugin that ends with a completion of the number that `start` is
 * given, or when `signal` is aborted, whichever is first. Keeps the native plugin until then: when
 * nobody has it, what it does is interrupted. `about` is what host functions and loggers have of it;
 * `name` is the function that is called, if it is a call.
 */
function complete (native, start, signal, about, name) {
  return new Promise((resolve, reject) => {
    const number = freeNumbers.pop() ?? calls.length
    const call = { native, resolve, reject, signal, abort: undefined, isGivenUp: false, about, name }
    if (signal !== undefined) {
      call.abort = () => {
        if (about !== undefined) about.isOver = true
        if (native === undefined) giveUp(call)
        else native.cancel(number)
        reject(signal.reason)
      }
      signal.addEventListener('abort', call.abort, { once: true })
    }
    calls[number] = call
    unfinished++
    try {
      if (!isKeptAlive) keepAlive(true)
      start(number)
      shared ??= newShared()
    } catch (error) {
      // It has not started: nothing will come of it.
      forget(number)
      reject(error)
    }
  })
}

/**
 * As `complete`, but waits: the event loop stands still, and nothing else happens in this thread than
 * that other calls that end meanwhile are settled, and host functions run.
 */
function completeSync (native, start, about, table, name) {
  if (isSettling) {
    throw codedError('WOULD_DEADLOCK', 'callSync() cannot be used by what runs while calls are settled')
  }
  let outcome
  const number = freeNumbers.pop() ?? calls.length
  const resolve = (value) => { outcome = { value } }
  const reject = (error) => { outcome = { error } }
  calls[number] = { native, resolve, reject, signal: undefined, abort: undefined, isGivenUp: false, about, name }
  unfinished++
  try {
    start(number)
  } catch (error) {
    forget(number)
    throw error
  }
  // The turn of the event loop in which threads would be woken does not end before this.
  wakeAll()
  // `settle` is what sets it.
  const isOver = () => outcome !== undefined
  while (!isOver()) {
    if (isStandingStill(table)) {
      native.cancel(number)
      throw codedError('WOULD_DEADLOCK', 'callSync() would wait for ever: all instances of the plugin wait for host functions in this thread')
    }
    boundary.wait()
    settle()
  }
  if (outcome.error !== undefined) throw outcome.error
  return outcome.value
}

/** Whether something is unfinished that `complete` or `completeSync` has been given this for. */
function isUnfinished (native) {
  return calls.some((call) => call !== undefined && call.native === native)
}

/** How many of what is unfinished are not calls of plugins. */
let inBackground = 0

/**
 * As `complete`, for operations of stores. One can take for ever, to wait for a change, and calls are
 * made one after the other all the same.
 */
function completeInBackground (native, start) {
  inBackground++
  const promise = complete(native, start)
  const over = () => { inBackground-- }
  promise.then(over, over)
  return promise
}

/** Keeps the process alive no longer for what cannot be canceled, such as a compilation. */
function giveUp (call) {
  call.isGivenUp = true
  unfinished--
  if (unfinished === 0) afterwards.then(letGo)
}

function forget (number) {
  const call = calls[number]
  calls[number] = undefined
  freeNumbers.push(number)
  if (!call.isGivenUp) unfinished--
  call.signal?.removeEventListener('abort', call.abort)
  call.about?.running?.end()
  return call
}

let isSettling = false
let hasMore = false

/** Host functions that have been called and not been run yet. */
const hostCalls = []

/** Runs them, not before all that has been taken is settled: they may do anything. */
function runHostCalls () {
  while (hostCalls.length > 0) run(boundary, hostCalls.shift())
}

/** Takes and settles what is finished; the other side calls it when there is something. */
function settle () {
  hasMore = true
  // Called by a listener of a signal, say: the loop below goes on.
  if (isSettling) return
  take(shared, apart)
  settleTaken()
  runHostCalls()
  if (unfinished === 0) afterwards.then(letGo)
}

/** Settles what has been taken, and then what there is besides. */
function settleTaken () {
  isSettling = true
  for (;;) {
    hasMore = header[HAS_MORE] !== 0
    const end = ITEMS + ITEM * header[COUNT]
    for (let at = ITEMS; at < end; at += ITEM) {
      settleOne(header[at], header[at + 1], header[at + 2], header[at + 3])
    }
    apart.length = 0
    if (!hasMore) break
    shared = newShared()
    header[USED] = 0
    take(shared, apart)
  }
  isSettling = false
}

function settleOne (number, code, offset, length) {
  const call = code >= LOG ? undefined : forget(number)
  let buffer = shared.buffer
  if (offset === APART) {
    buffer = apart.shift()
    if (length === AS_IT_IS) return call.resolve(buffer)
    offset = 0
    length = buffer.byteLength
  } else {
    header[USED] = offset + length
  }
  if (call === undefined) {
    happened(number === NO_CALL ? undefined : calls[number]?.about, code, buffer, offset, length)
  } else if (code === HOST_FUNCTION_ERROR && call.about?.thrown !== undefined) {
    call.reject(call.about.thrown.error)
  } else if (code !== 0) {
    call.reject(errorOf(call, code, decoder.decode(new Uint8Array(buffer, offset, length))))
  } else {
    call.resolve(length === 0 ? null : new PluginOutput(buffer, offset, length))
  }
}

/** The error of a call. The text of a trap is its message and the guest's functions, with NULs between. */
function errorOf (call, code, text) {
  const [message, ...frames] = code === TRAP ? text.split('\0') : [text]
  const error = codedError(CODES[code - 1], message)
  if (call.name !== undefined) error.function = call.name
  if (frames.length > 0) error.wasmBacktrace = frames
  return error
}

function happened (about, code, buffer, offset, length) {
  if (code === HOST_CALL) {
    hostCalls.push(hostCallOf(buffer, offset, length, about))
    return
  }
  const view = new DataView(buffer, offset, length)
  const table = tables[view.getUint32(0, true)]
  if (table === undefined) return
  const message = decoder.decode(new Uint8Array(buffer, offset + 8, length - 8))
  log(about?.logger ?? table.logger, view.getUint32(4, true), message)
}

const afterwards = Promise.resolve()
let isKeptAlive = false

function keepAlive (alive) {
  boundary.keepAlive(alive)
  isKeptAlive = alive
}

let isLettingGo = false

/**
 * Runs after those who awaited the last calls, and who often go on with the next: in a microtask, or
 * where results were there before anybody could await them, when the event loop has turned.
 */
function letGo () {
  isLettingGo = false
  if (unfinished === 0 && isKeptAlive) keepAlive(false)
}

const toBeWoken = []

/**
 * Wakes a thread of a plugin. Where others are busy with calls, that is done once after all calls
 * that this turn of the event loop has for it: to wake a thread costs more than to queue a call, and
 * once it is awake it finds all of them.
 */
function wake (native) {
  if (unfinished - inBackground === 1) return native.wake()
  if (toBeWoken.length === 0) setImmediate(wakeAll)
  if (!toBeWoken.includes(native)) toBeWoken.push(native)
}

function wakeAll () {
  for (const native of toBeWoken) native.wake()
  toBeWoken.length = 0
}

// Whether those who awaited the last call that was settled at once have gone on: who calls before that
// is somebody else, and calls are not made one after the other.
let isAlone = true

function haveGoneOn () {
  isAlone = true
}

/**
 * How many calls in a row may be settled before the event loop has turned: who awaits calls one after
 * the other would otherwise keep it from ever turning.
 */
const MAX_SETTLED_AT_ONCE = 32
let settledAtOnce = 0

/** What starts calls of a native plugin. */
function caller (native) {
  const call = native.caller(boundary)

  /** Starts a call; 0 milliseconds stand for the plugin's own limit. */
  return function start (number, exportNumber, input, timeoutMs) {
    let length = 0
    if (typeof input === 'string') {
      if (input.length * 3 > INBOX_BYTES) return startLong(number, exportNumber, input, timeoutMs)
      length = encoder.encodeInto(input, inbox).written
    } else if (input !== undefined) {
      length = input.length
      if (length > INBOX_BYTES) return startLong(number, exportNumber, input, timeoutMs)
      inbox.set(input)
    }
    header[NUMBER] = number
    header[EXPORT] = exportNumber
    header[LENGTH] = length
    header[TIMEOUT] = timeoutMs
    header[IS_ALONE] = isAlone && unfinished - inBackground === 1 ? 1 : 0
    header[MAY_TAKE] = isSettling || settledAtOnce >= MAX_SETTLED_AT_ONCE ? 0 : 1
    const outcome = call(shared, apart)
    if (outcome === WAKE) {
      wake(native)
    } else if (outcome === TAKEN) {
      settledAtOnce++
      settleTaken()
      if (hostCalls.length > 0) runHostCalls()
      isAlone = false
      afterwards.then(haveGoneOn)
      if (!isLettingGo) {
        isLettingGo = true
        setImmediate(letGo)
      }
    } else if (outcome === TAKE) {
      settledAtOnce = 0
      setImmediate(settle)
    }
  }

  function startLong (number, exportNumber, input, timeoutMs) {
    if (native.callWith(number, exportNumber, input, timeoutMs) === WAKE) wake(native)
  }
}

/** Loads a plugin and resolves to its native part, unless `signal` is aborted first. */
function open (options, store, signal) {
  const opened = complete(undefined, (number) => binding.openPlugin(number, options, store, boundary), signal)
  watchSignalListeners(binding.putBackSignalHandlers)
  return opened
}

/** Fills the compile cache with what such a plugin needs, unless `signal` is aborted first. */
function fillCache (options, signal) {
  return complete(undefined, (number) => binding.precompile(number, options, boundary), signal)
}

/** Opens the store of a URL and resolves to its native part. */
function openStore (url, options) {
  return complete(undefined, (number) => binding.openStore(number, url, options, boundary))
}

/** A native store with the same operations, over a native MemoryStore. */
function storeOfMemory (native) {
  return binding.Store.ofMemory(native, boundary)
}

module.exports = { complete, completeInBackground, completeSync, isUnfinished, caller, fillCache, open, openStore, storeOfMemory }
