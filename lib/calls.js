'use strict'

// The JavaScript end of the boundary; `src/binding` is the other. Calls leave with their
// input in `inbox`, and come back many at a time: `settle` finds them as numbers in `header`, with
// their bytes in `shared`, or in `outOfBand` if they are too long for it.
//
// JavaScript can end anywhere in here: by an exception, or by a time limit of `node:vm`, which runs no `finally`.
// So what has been taken and not been settled is known from `header` and `next` alone, and whoever settles next
// goes on there. The user's code (listeners, loggers, host functions) runs after all that belongs together is done.

const { setImmediate } = require('node:timers')
const binding = require('../binding.js')
const { codedError, ofCall } = require('./errors.js')
const { hostCallOf, isStandingStill, run, pluginStates } = require('./host-functions.js')
const { log, throwLater } = require('./logging.js')
const { PluginOutput } = require('./plugin-output.js')
const { watchSignalListeners } = require('./signals.js')

const INBOX_BYTES = 8_192
const SHARED_BYTES = 8_192
const MAX_ITEMS = 64

// The layout of the memory that both sides share is explained in `src/binding/protocol.rs`.
const {
  HEADER_NUMBER, HEADER_EXPORT, HEADER_INPUT_BYTES, HEADER_TIMEOUT_MS, HEADER_IS_ALONE, HEADER_MAY_TAKE,
  HEADER_SHARED_BYTES_USED, HEADER_COUNT, HEADER_HAS_MORE, HEADER_MAY_SPIN, HEADER_ITEMS, ITEM_LENGTH,
  HEADER_REPLY_TO, HEADER_REPLY, HEADER_REPLY_BITS, REPLY_NUMBER, REPLY_BYTES, REPLY_STORE,
  CALL_MUST_WAKE, CALL_TAKEN, CALL_MUST_TAKE, EMPTY_OUTPUT, OUT_OF_BAND, JS_VALUE, HOST_CALL, NO_CALL, LOG, LOG_PLUGIN, LOG_LEVEL, LOG_TEXT
} = binding

const CODES = binding.errorCodes()
const PLUGIN_ERROR = CODES.indexOf('PLUGIN_ERROR') + 1
const TRAP = CODES.indexOf('TRAP') + 1
const HOST_FUNCTION_ERROR = CODES.indexOf('HOST_FUNCTION_ERROR') + 1

const encoder = new TextEncoder()
const decoder = new TextDecoder()

// These two are nobody else's: the other side keeps their addresses.
const inbox = new Uint8Array(INBOX_BYTES)
const header = new Uint32Array(HEADER_ITEMS + ITEM_LENGTH * MAX_ITEMS)

const outOfBand = []
// Made when the first thing has been started: loading what it needs takes two milliseconds, in which that proceeds.
let shared
let sharedView

/** The boundary, with the replies that are made most often: their numbers and bytes are in `header` and `inbox`. */
class Boundary extends binding.Boundary {
  /** Answers a host call with the bits of a number. */
  answer (hostCall, low, high) {
    header[HEADER_REPLY_BITS] = low
    header[HEADER_REPLY_BITS + 1] = high
    replyTo(hostCall, REPLY_NUMBER)
  }

  /** Answers it with the offset of a block with these bytes. */
  answerWith (hostCall, content) {
    if (putIntoInbox(content)) replyTo(hostCall, REPLY_BYTES)
    else super.answerWith(hostCall, asBytes(content))
  }

  /** Makes a block with these bytes; returns its offset, 0 if it does not fit, or a negative number if the host call is over. */
  store (hostCall, content) {
    return putIntoInbox(content) ? replyTo(hostCall, REPLY_STORE) : super.store(hostCall, asBytes(content))
  }
}

const boundary = new Boundary(settle, inbox, header)
const take = boundary.taker()
const reply = boundary.replier()

function replyTo (hostCall, kind) {
  header[HEADER_REPLY_TO] = hostCall
  header[HEADER_REPLY] = kind
  return reply()
}

const asBytes = (content) => typeof content === 'string' ? encoder.encode(content) : content

/** Puts a string or bytes into the inbox; false if they are too long. */
function putIntoInbox (content) {
  let length = content.length
  if (typeof content === 'string') {
    if (length * 3 > INBOX_BYTES) return false
    if (length > 0) length = encoder.encodeInto(content, inbox).written
  } else {
    if (length > INBOX_BYTES) return false
    inbox.set(content)
  }
  header[HEADER_INPUT_BYTES] = length
  return true
}

// What is unfinished, by its number. A number is used again once the other side has finished with
// it; for an aborted call that is later than its promise is settled.
const calls = []
const freeNumbers = []
let unfinished = 0

function renewShared () {
  const { markAsUntransferable } = require('node:worker_threads')
  shared = new Uint8Array(SHARED_BYTES)
  sharedView = new DataView(shared.buffer)
  // Who transfers one output's memory to a worker must not take the others' away.
  markAsUntransferable(shared.buffer)
}

/**
 * Starts something of a native plugin that ends with a completion of the number that `start` is
 * given, or when `signal` is aborted, whichever is first. Keeps the native plugin until then: when
 * nobody has it, what it does is interrupted. If it is a call, `callState` is what host functions and
 * loggers know of it, `name` the function, and `plugin` the name of the plugin.
 */
function complete (native, start, signal, callState, name, plugin) {
  return new Promise((resolve, reject) => {
    const call = { native, resolve, reject, signal, abort: undefined, isAborted: false, isGivenUp: false, callState, name, plugin, entry: undefined, number: undefined }
    if (signal !== undefined) {
      call.abort = () => {
        call.isAborted = true
        if (callState !== undefined) callState.isOver = true
        if (native === undefined) giveUp(call)
        else native.cancel(call.number)
        reject(signal.reason)
      }
      signal.addEventListener('abort', call.abort, { once: true })
    }
    goOn(native, begin(start, call))
    if (unfinished > 0 && !isKeptAlive) keepAlive(true)
    if (shared === undefined) renewShared()
  })
}

/** Starts something, and returns what `start` does. If that throws, it has not started: nothing will come of it. */
function begin (start, call) {
  const number = freeNumbers.pop() ?? calls.length
  let outcome
  try {
    // It ends with what is started, and nothing is called before that is noted: either both happen or none.
    outcome = start(number)
  } catch (error) {
    freeNumbers.push(number)
    release(call)
    throw error
  }
  call.number = number
  calls[number] = call
  unfinished++
  return outcome
}

/**
 * As `complete`, but waits: the event loop stands still, and nothing else happens in this thread than
 * that other calls that end meanwhile are settled, and host functions run. Stacks of errors begin with
 * the caller of `entry`.
 */
function completeSync (native, start, callState, pluginState, name, entry) {
  const wouldDeadlock = (message) => ofCall(codedError('WOULD_DEADLOCK', message), pluginState.name, name, entry)
  settleAfterwards()
  let outcome
  const resolve = (value) => { outcome = { value } }
  const reject = (error) => { outcome = { error } }
  const call = {
    native, resolve, reject, signal: undefined, abort: undefined, isAborted: false, isGivenUp: false, callState, name, plugin: pluginState.name, entry, number: undefined
  }
  goOn(native, begin(start, call))
  // The turn of the event loop in which threads would be woken does not end before this.
  wakeAll()
  // `settle` is what sets it.
  const isOver = () => outcome !== undefined
  while (!isOver()) {
    if (isStandingStill(pluginState)) {
      native.cancel(call.number)
      throw wouldDeadlock('callSync() would wait for ever: all instances of the plugin wait for host functions in this thread')
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

/** How many unfinished jobs are not calls of plugins. */
let inBackground = 0

/**
 * As `complete`, for operations of stores. One can take for ever, to wait for a change, and calls are
 * made one after the other all the same.
 */
function completeInBackground (native, start) {
  const promise = complete(native, start)
  const over = () => { inBackground-- }
  promise.then(over, over)
  inBackground++
  return promise
}

/** Keeps the process alive no longer for what cannot be canceled, such as a compilation. */
function giveUp (call) {
  call.isGivenUp = true
  unfinished--
  if (unfinished === 0) afterwards.then(letGo)
}

/** Nothing in here calls functions in JavaScript, so that nothing can end it half-way. */
function forget (number) {
  if (!calls[number].isGivenUp) unfinished--
  calls[number] = undefined
  freeNumbers.push(number)
}

/** Tells host functions and the signal of a call that it is over. */
function release (call) {
  call.callState?.running?.end()
  if (call.signal === undefined) return
  try {
    call.signal.removeEventListener('abort', call.abort)
  } catch (error) {
    throwLater(error)
  }
}

/** Where the next item that has been taken and not been settled is in `header`. */
let next = HEADER_ITEMS
/** How many items of `outOfBand` have been settled. */
let outOfBandUsed = 0

/** Host functions that have been called and not been run yet. */
const hostCalls = []

/**
 * For how many milliseconds host calls are run as they come before the event loop turns: guests that go on
 * calling would otherwise keep it from ever turning.
 */
const MAX_MS_AT_ONCE = 0.2
/** When the first host calls were run since the event loop turned. */
let begunAt

function mustTurn () {
  const now = performance.now()
  begunAt ??= now
  return now - begunAt >= MAX_MS_AT_ONCE
}

// Since the queue was looked at last: whether host calls have been answered, whose guests may well call again at
// once, and whether something has been settled, or waits for a promise, so that microtasks have to run first.
let hasAnswered = false
let hasAwaiters = false

/**
 * Runs them, not before all that has been taken is settled: they may do anything. Returns whether the queue is to
 * be looked at again now; otherwise that is done soon. Before that nobody wakes the event loop.
 */
function runHostCalls () {
  let mayGoOn = false
  try {
    while (hostCalls.length > 0) {
      if (run(boundary, hostCalls.shift(), answered)) hasAnswered = true
      else hasAwaiters = true
    }
    mayGoOn = !hasAwaiters && !mustTurn()
  } finally {
    if (!mayGoOn) settleSoon()
  }
  return mayGoOn
}

/** Called when the promise of a host function has been settled. */
function answered () {
  hasAnswered = true
  settleSoon()
}

let isSettlingSoon = false

/** Settles once more, after the microtasks that are queued already, or when the event loop has turned. */
function settleSoon () {
  if (isSettlingSoon) return
  if (mustTurn()) setImmediate(settleAfterTurn)
  else afterwards.then(settleNext)
  isSettlingSoon = true
}

function settleNext () {
  isSettlingSoon = false
  settleNow()
}

function settleAfterTurn () {
  begunAt = undefined
  settleNext()
}

/** Takes and settles what is finished; the other side calls it when there is something. */
function settle () {
  begunAt = undefined
  settleNow()
}

function settleNow () {
  let isDone = false
  try {
    // What was interrupted, or what is settled by a caller of this: a listener of a signal, say, may wait for a call.
    settleTaken()
    do {
      header[HEADER_MAY_SPIN] = hasAnswered ? 1 : 0
      hasAnswered = hasAwaiters = false
      takeMore()
      header[HEADER_MAY_SPIN] = 0
      settleTaken()
    } while (hostCalls.length > 0 && runHostCalls())
    isDone = true
  } finally {
    if (!isDone) setImmediate(settle)
  }
  if (unfinished === 0 && !isLettingGo) afterwards.then(letGo)
}

let isSettledAfterwards = false

/** Settles when the event loop has turned. For those whose callers may be interrupted: then nobody else would. */
function settleAfterwards () {
  if (isSettledAfterwards) return
  setImmediate(settleInTheEnd)
  isSettledAfterwards = true
}

function settleInTheEnd () {
  isSettledAfterwards = false
  settle()
}

/** Whether anything that has been taken is not settled. */
function hasUnsettled () {
  return header[HEADER_COUNT] !== 0 || header[HEADER_HAS_MORE] !== 0
}

/** All that was taken before has been settled. */
function forgetTaken () {
  header[HEADER_COUNT] = 0
  next = HEADER_ITEMS
  outOfBand.length = outOfBandUsed = 0
}

function takeMore () {
  forgetTaken()
  take(shared, outOfBand)
}

/** Settles what has been taken, and then what there is besides. */
function settleTaken () {
  for (;;) {
    while (next < HEADER_ITEMS + ITEM_LENGTH * header[HEADER_COUNT]) settleOne()
    if (header[HEADER_HAS_MORE] === 0) break
    renewShared()
    header[HEADER_SHARED_BYTES_USED] = 0
    takeMore()
  }
  forgetTaken()
}

function settleOne () {
  const number = header[next]
  const code = header[next + 1]
  let offset = header[next + 2]
  let length = header[next + 3]
  const isOutOfBand = offset === OUT_OF_BAND
  const buffer = isOutOfBand ? outOfBand[outOfBandUsed] : shared.buffer
  const isValue = isOutOfBand && length === JS_VALUE
  if (isOutOfBand) {
    offset = 0
    length = isValue ? 0 : buffer.byteLength
  }

  const call = number === NO_CALL ? undefined : calls[number]
  if (code === HOST_CALL) {
    const view = isOutOfBand ? new DataView(buffer) : sharedView
    hostCalls.push(hostCallOf(view, offset, call?.callState))
  } else if (code !== LOG && call !== undefined) {
    try {
      if (isValue) call.resolve(buffer)
      else settleCall(call, code, buffer, offset, length)
    } catch (error) {
      // There may be no memory for the output.
      call.reject(error)
    }
    forget(number)
    hasAwaiters = true
  }

  if (isOutOfBand) outOfBandUsed++
  else header[HEADER_SHARED_BYTES_USED] = offset + length
  next += ITEM_LENGTH

  if (code === LOG) logMessage(call?.callState, new DataView(buffer, offset, length))
  else if (code !== HOST_CALL && call !== undefined) release(call)
}

function settleCall (call, code, buffer, offset, length) {
  if (code === HOST_FUNCTION_ERROR && call.callState?.thrown !== undefined) {
    call.reject(call.callState.thrown.error)
  } else if (code === EMPTY_OUTPUT) {
    call.resolve(new PluginOutput(new ArrayBuffer(0), 0, 0))
  } else if (code !== 0) {
    fail(call, code, decoder.decode(new Uint8Array(buffer, offset, length)))
  } else {
    call.resolve(length === 0 ? null : new PluginOutput(buffer, offset, length))
  }
}

/**
 * Rejects a call. The error is made in a job of a promise that the call's promise depends on, and after the caller
 * has had the time to await that: so V8 finds the async functions that wait, and the stack has them.
 */
function fail (call, code, text) {
  if (call.entry !== undefined) return call.reject(errorOf(call, code, text, call.entry))
  // Its promise is rejected already, and another one that rejects would be unhandled.
  if (call.isAborted) return
  const throwError = () => { throw errorOf(call, code, text, throwError) }
  call.resolve(afterwards.then().then(throwError))
}

/**
 * The error of a call. The text of a trap is its message and the guest's functions, with NULs between; that of a plugin's
 * own error the code that it returned, a NUL and its message.
 */
function errorOf (call, code, text, entry) {
  const [message, ...frames] = code === TRAP ? text.split('\0') : [code === PLUGIN_ERROR ? text.slice(text.indexOf('\0') + 1) : text]
  const error = codedError(CODES[code - 1], message, entry)
  if (code === PLUGIN_ERROR) error.returnCode = Number.parseInt(text)
  if (call.name !== undefined) Object.assign(error, { plugin: call.plugin, function: call.name })
  if (frames.length > 0) error.wasmBacktrace = frames
  return error
}

function logMessage (callState, view) {
  // One that could not be handed over is empty.
  const plugin = view.byteLength > 0 ? pluginStates[view.getUint32(LOG_PLUGIN * 4, true)] : undefined
  if (plugin === undefined) return
  const message = decoder.decode(new Uint8Array(view.buffer, view.byteOffset + LOG_TEXT * 4, view.byteLength - LOG_TEXT * 4))
  log(callState?.logger ?? plugin.logger, view.getUint32(LOG_LEVEL * 4, true), message)
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
  // Whoever took it was interrupted.
  if (hasUnsettled() || hostCalls.length > 0) settle()
  if (unfinished === 0 && isKeptAlive) keepAlive(false)
}

const toBeWoken = []
let isWakingSoon = false

/**
 * Wakes a thread of a plugin. Where others are busy with calls, that is done once after all calls
 * that this turn of the event loop has for it: to wake a thread costs more than to queue a call, and
 * once it is awake it finds all of them.
 */
function wake (native) {
  if (unfinished - inBackground === 1) return native.wake()
  if (!isWakingSoon) setImmediate(wakeSoon)
  isWakingSoon = true
  if (!toBeWoken.includes(native)) toBeWoken.push(native)
}

function wakeSoon () {
  isWakingSoon = false
  wakeAll()
}

function wakeAll () {
  for (const native of toBeWoken) native.wake()
  toBeWoken.length = 0
}

// Whether the awaiters of the last call that was settled at once have resumed: a call before that is somebody
// else's, so calls are not made one after the other.
let isAlone = true

function markAwaitersResumed () {
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

  /** Starts a call, and returns what `goOn` needs; 0 milliseconds stand for the plugin's own limit. */
  return function start (number, exportNumber, input, timeoutMs) {
    if (!putIntoInbox(input ?? '')) return native.callWith(number, exportNumber, input, timeoutMs)
    const isOnly = isAlone && unfinished === inBackground
    // Before anything can be taken, as the caller may be interrupted afterwards.
    if (isOnly && !isLettingGo) {
      setImmediate(letGo)
      isLettingGo = true
    }
    header[HEADER_NUMBER] = number
    header[HEADER_EXPORT] = exportNumber
    header[HEADER_TIMEOUT_MS] = timeoutMs
    header[HEADER_IS_ALONE] = isOnly ? 1 : 0
    header[HEADER_MAY_TAKE] = hasUnsettled() || settledAtOnce >= MAX_SETTLED_AT_ONCE ? 0 : 1
    return call(shared, outOfBand)
  }
}

/** Does what the start of a call asks for. */
function goOn (native, outcome) {
  if (outcome === CALL_MUST_WAKE) {
    wake(native)
  } else if (outcome === CALL_TAKEN) {
    settledAtOnce++
    hasAwaiters = false
    settleTaken()
    if (hostCalls.length > 0) {
      settleAfterwards()
      if (runHostCalls()) settleNow()
    }
    isAlone = false
    afterwards.then(markAwaitersResumed)
  } else if (outcome === CALL_MUST_TAKE) {
    settledAtOnce = 0
    setImmediate(settle)
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
