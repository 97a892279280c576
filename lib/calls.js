'use strict'

// The JavaScript side of the boundary to Rust; `src/binding` is the other side. A call leaves with its input in
// `inbox`. Completions come back in batches: `settle` reads them as numbers from `header`, and their bytes from
// `shared`, or from `outOfBand` if they do not fit there.
//
// JavaScript can be interrupted anywhere in this file: by an exception, or by a time limit of `node:vm`, which runs
// no `finally`. So `header` and `next` alone tell which completions have been taken and not settled, and the next
// `settle` continues there. The user's code (listeners, loggers, host functions) runs only while the state is consistent.

const { setImmediate } = require('node:timers')
const binding = require('../binding.js')
const { codedError, annotateCallError } = require('./errors.js')
const { decodeHostCall, isBlockedOnJs, run, pluginStates } = require('./host-functions.js')
const { log, throwLater } = require('./logging.js')
const { PluginOutput } = require('./plugin-output.js')
const { watchSignalListeners } = require('./signals.js')
const { publishSummary } = require('./tracing.js')

const INBOX_BYTES = 8_192
const SHARED_BYTES = 8_192
const MAX_ITEMS = 64

// `src/binding/protocol.rs` explains the layout of the memory that both sides share.
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

// Rust keeps the addresses of these two, so they are never replaced or transferred.
const inbox = new Uint8Array(INBOX_BYTES)
const header = new Uint32Array(HEADER_ITEMS + ITEM_LENGTH * MAX_ITEMS)

const outOfBand = []
// Created after the first call has started: loading `worker_threads` takes two milliseconds, and the call runs meanwhile.
let shared
let sharedView

/** The boundary, with fast paths for the most frequent replies: their numbers and bytes travel in `header` and `inbox`. */
class Boundary extends binding.Boundary {
  /** Answers a host call with the bits of a number. */
  answer (hostCall, low, high) {
    header[HEADER_REPLY_BITS] = low
    header[HEADER_REPLY_BITS + 1] = high
    replyTo(hostCall, REPLY_NUMBER)
  }

  /** Answers a host call with the offset of a block that holds these bytes. */
  answerWith (hostCall, content) {
    if (putIntoInbox(content)) replyTo(hostCall, REPLY_BYTES)
    else super.answerWith(hostCall, asBytes(content))
  }

  /** Makes a block with these bytes. Returns its offset, 0 if it does not fit, or a negative number if the host call has ended. */
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

/** Puts a string or bytes into the inbox. Returns false if they are too long. */
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

// Unfinished jobs by number. A number becomes free once Rust has finished with it; for an aborted call that is
// after its promise has been settled.
const calls = []
const freeNumbers = []
let unfinished = 0

function renewShared () {
  const { markAsUntransferable } = require('node:worker_threads')
  shared = new Uint8Array(SHARED_BYTES)
  sharedView = new DataView(shared.buffer)
  // Outputs share this memory: transferring one of them to a worker must not detach the others.
  markAsUntransferable(shared.buffer)
}

/**
 * Starts a job of a native object. `start` gets the job's number; the promise is settled by the completion with
 * that number, or when `signal` is aborted, whichever is first. The job keeps a reference to `native` until then,
 * because collecting a native plugin interrupts its calls. For calls, `callState` holds the state for host functions
 * and loggers, `name` is the function, `plugin` the plugin's name, and `trace` the message
 * for the channel `extism-host:call`, if somebody listens, or an object for the call's times.
 */
function complete (native, start, signal, callState, name, plugin, trace) {
  return new Promise((resolve, reject) => {
    const call = { native, resolve, reject, signal, abort: undefined, isAborted: false, isAbandoned: false, callState, name, plugin, trace, entry: undefined, number: undefined }
    if (signal !== undefined) {
      call.abort = () => {
        call.isAborted = true
        if (callState !== undefined) callState.hasEnded = true
        if (native === undefined) abandon(call)
        else native.cancel(call.number)
        reject(signal.reason)
        callState?.running?.end(() => signal.reason)
        if (call.trace !== undefined) endTrace(call)
      }
      signal.addEventListener('abort', call.abort, { once: true })
    }
    handleStarted(native, startNumbered(start, call))
    if (unfinished > 0 && !isKeptAlive) keepAlive(true)
    if (shared === undefined) renewShared()
  })
}

/** Gives a job a number and starts it. Returns the result of `start`; if that throws, no completion will follow. */
function startNumbered (start, call) {
  const number = freeNumbers.pop() ?? calls.length
  let outcome
  try {
    if (call.trace !== undefined) boundary.startTrace(number, call.trace.traceparent, call.trace.plugin !== undefined)
    // `start` ends with the native call, and nothing runs before the job is registered below: an interruption
    // cannot separate the two.
    outcome = start(number)
  } catch (error) {
    freeNumbers.push(number)
    call.number = number
    release(call)
    throw error
  }
  call.number = number
  calls[number] = call
  unfinished++
  return outcome
}

/**
 * Like `complete`, but blocks the event loop until the job ends. Meanwhile this thread only settles other calls and
 * runs host functions. Stacks of errors begin with the caller of `entry`.
 */
function completeSync (native, start, callState, pluginState, name, entry, trace) {
  const wouldDeadlock = (message) => annotateCallError(codedError('WOULD_DEADLOCK', message), pluginState.name, name, entry)
  settleOnNextTurn()
  let outcome
  const resolve = (value) => { outcome = { value } }
  const reject = (error) => { outcome = { error } }
  const call = {
    native, resolve, reject, signal: undefined, abort: undefined, isAborted: false, isAbandoned: false, callState, name, plugin: pluginState.name, trace, entry, number: undefined
  }
  handleStarted(native, startNumbered(start, call))
  // Scheduled wake-ups would run on the next turn of the event loop, which this call blocks.
  wakeAll()
  // `settle` changes `outcome`, which the linter cannot see.
  const isSettled = () => outcome !== undefined
  while (!isSettled()) {
    if (isBlockedOnJs(pluginState)) {
      native.cancel(call.number)
      throw wouldDeadlock('callSync() would wait forever: all instances of the plugin wait for host functions in this thread')
    }
    boundary.wait()
    settle()
  }
  if (outcome.error !== undefined) throw outcome.error
  return outcome.value
}

/** Whether `complete` or `completeSync` has an unfinished job for this native object. */
function isUnfinished (native) {
  return calls.some((call) => call !== undefined && call.native === native)
}

/** The number of unfinished jobs that are not calls of plugins. */
let backgroundJobs = 0

/**
 * Like `complete`, for operations of stores. They are counted apart: one that waits for a change may never end, and
 * must not turn off the fast path for calls made one after the other.
 */
function completeInBackground (native, start) {
  const promise = complete(native, start)
  const onEnd = () => { backgroundJobs-- }
  promise.then(onEnd, onEnd)
  backgroundJobs++
  return promise
}

/** Stops a job that cannot be canceled, such as a compilation, from keeping the process alive. */
function abandon (call) {
  call.isAbandoned = true
  unfinished--
  if (unfinished === 0) resolved.then(releaseEventLoop)
}

/** Must not call functions in JavaScript, so that no interruption can leave it half done. */
function freeNumber (number) {
  if (!calls[number].isAbandoned) unfinished--
  calls[number] = undefined
  freeNumbers.push(number)
}

/** Ends a call's trace, and removes the listener from its signal. */
function release (call) {
  if (call.trace !== undefined) endTrace(call)
  if (call.signal === undefined) return
  try {
    call.signal.removeEventListener('abort', call.abort)
  } catch (error) {
    throwLater(error)
  }
}

/** Completes the message about a traced call, and publishes what the call has done. */
function endTrace (call) {
  const message = call.trace
  call.trace = undefined
  const summary = boundary.endTrace(call.number)
  if (summary !== null) publishSummary(message, summary)
}

/** The index in `header` of the next item that has been taken and not settled. */
let next = HEADER_ITEMS
/** The number of items of `outOfBand` that have been settled. */
let outOfBandUsed = 0

/** The queue of host calls that have not run yet. */
const hostCalls = []

/** After running host calls for this long, yield to the event loop: guests that keep calling would starve it. */
const MAX_MS_PER_TURN = 0.2
/** When the first host calls of this turn of the event loop ran. */
let turnStartedAt

function mustYield () {
  const now = performance.now()
  turnStartedAt ??= now
  return now - turnStartedAt >= MAX_MS_PER_TURN
}

// Since the last poll of the completion queue: whether host calls have been answered (their guests may well call
// again at once), and whether something was settled or waits for a promise (so microtasks must run first).
let hasAnswered = false
let hasAwaiters = false

/**
 * Runs the queued host calls. Call it only after everything that was taken is settled, as they may do anything.
 * Returns whether to poll the completion queue again right away; if not, it has scheduled a poll. Until the next
 * poll, Rust does not wake the event loop.
 */
function runHostCalls () {
  let mayGoOn = false
  try {
    while (hostCalls.length > 0) {
      if (run(boundary, hostCalls.shift(), onHostCallAnswered)) hasAnswered = true
      else hasAwaiters = true
    }
    mayGoOn = !hasAwaiters && !mustYield()
  } finally {
    if (!mayGoOn) settleLater()
  }
  return mayGoOn
}

/** Called when the promise of a host function is settled. */
function onHostCallAnswered () {
  hasAnswered = true
  settleLater()
}

let isSettlingLater = false

/** Schedules another `settleNow`: after the queued microtasks or, if it must yield, on the next turn of the event loop. */
function settleLater () {
  if (isSettlingLater) return
  if (mustYield()) setImmediate(settleAfterTurn)
  else resolved.then(settleNext)
  isSettlingLater = true
}

function settleNext () {
  isSettlingLater = false
  settleNow()
}

function settleAfterTurn () {
  turnStartedAt = undefined
  settleNext()
}

/** Takes and settles completions. Rust calls it when the completion queue is not empty. */
function settle () {
  turnStartedAt = undefined
  settleNow()
}

function settleNow () {
  let isDone = false
  try {
    // Completions that an interrupted `settle` left, or that a caller of this is settling: the listener of a signal,
    // for example, may use callSync().
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
  if (unfinished === 0 && !isReleaseScheduled) resolved.then(releaseEventLoop)
}

let isSettleOnTurnScheduled = false

/** Settles on the next turn of the event loop, in case the caller is interrupted before it can settle. */
function settleOnNextTurn () {
  if (isSettleOnTurnScheduled) return
  setImmediate(settleOnTurn)
  isSettleOnTurnScheduled = true
}

function settleOnTurn () {
  isSettleOnTurnScheduled = false
  settle()
}

/** Whether completions have been taken and not settled. */
function hasUnsettled () {
  return header[HEADER_COUNT] !== 0 || header[HEADER_HAS_MORE] !== 0
}

/** Marks all taken completions as settled. */
function clearTaken () {
  header[HEADER_COUNT] = 0
  next = HEADER_ITEMS
  outOfBand.length = outOfBandUsed = 0
}

function takeMore () {
  clearTaken()
  take(shared, outOfBand)
}

/** Settles the taken completions, then takes and settles more until the queue is empty. */
function settleTaken () {
  for (;;) {
    while (next < HEADER_ITEMS + ITEM_LENGTH * header[HEADER_COUNT]) settleOne()
    if (header[HEADER_HAS_MORE] === 0) break
    renewShared()
    header[HEADER_SHARED_BYTES_USED] = 0
    takeMore()
  }
  clearTaken()
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
    hostCalls.push(decodeHostCall(view, offset, call?.callState))
  } else if (code !== LOG && call !== undefined) {
    try {
      if (isValue) call.resolve(buffer)
      else settleCall(call, code, buffer, offset, length)
    } catch (error) {
      // For example if there is no memory for the output.
      call.reject(error)
    }
    freeNumber(number)
    hasAwaiters = true
  }

  if (isOutOfBand) outOfBandUsed++
  else header[HEADER_SHARED_BYTES_USED] = offset + length
  next += ITEM_LENGTH

  if (code === LOG) logMessage(call?.callState, new DataView(buffer, offset, length))
  else if (code !== HOST_CALL && call !== undefined) {
    release(call)
    // Its host function still runs if the call was interrupted.
    call.callState?.running?.end(() => errorOf(call, code, decoder.decode(new Uint8Array(buffer, offset, length))))
  }
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
 * Rejects a call. The error is created in a reaction of a promise that the call's promise depends on, after the
 * caller has had time to await it: that way V8 finds the waiting async functions and puts them into the stack.
 */
function fail (call, code, text) {
  if (call.entry !== undefined) return call.reject(errorOf(call, code, text, call.entry))
  // The abort has rejected the call's promise; rejecting another one here would be an unhandled rejection.
  if (call.isAborted) return
  const throwError = () => { throw errorOf(call, code, text, throwError) }
  call.resolve(resolved.then().then(throwError))
}

/**
 * Creates the error of a call. For a trap, `text` is the message and the guest's functions, separated by NULs; for a
 * PLUGIN_ERROR, it is the returned code, a NUL and the message.
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
  // A message that could not be handed over is empty.
  const plugin = view.byteLength > 0 ? pluginStates[view.getUint32(LOG_PLUGIN * 4, true)] : undefined
  if (plugin === undefined) return
  const message = decoder.decode(new Uint8Array(view.buffer, view.byteOffset + LOG_TEXT * 4, view.byteLength - LOG_TEXT * 4))
  log(callState?.logger ?? plugin.logger, view.getUint32(LOG_LEVEL * 4, true), message)
}

const resolved = Promise.resolve()
let isKeptAlive = false

function keepAlive (alive) {
  boundary.keepAlive(alive)
  isKeptAlive = alive
}

let isReleaseScheduled = false

/**
 * Stops keeping the process alive once nothing is unfinished. It is scheduled to run after the awaiters of the last
 * calls, which often start another: in a microtask, or on the next turn of the event loop if results were there
 * before anybody could await them.
 */
function releaseEventLoop () {
  isReleaseScheduled = false
  // If something is left, the `settle` that took it was interrupted.
  if (hasUnsettled() || hostCalls.length > 0) settle()
  if (unfinished === 0 && isKeptAlive) keepAlive(false)
}

const pluginsToWake = []
let isWakeScheduled = false

/**
 * Wakes a thread of a plugin: at once for a single call; otherwise once at the end of this turn of the event loop,
 * for all its calls. Waking a thread costs more than queueing a call, and an awake thread finds all queued calls.
 */
function wake (native) {
  if (unfinished - backgroundJobs === 1) return native.wake()
  if (!isWakeScheduled) setImmediate(wakeOnTurn)
  isWakeScheduled = true
  if (!pluginsToWake.includes(native)) pluginsToWake.push(native)
}

function wakeOnTurn () {
  isWakeScheduled = false
  wakeAll()
}

function wakeAll () {
  for (const native of pluginsToWake) native.wake()
  pluginsToWake.length = 0
}

// Whether calls are made one after the other: the awaiters of the last call that was settled at once have resumed.
// A call before that comes from somebody else.
let isSequential = true

function markAwaitersResumed () {
  isSequential = true
}

/** After this many calls settled at once, yield to the event loop: a loop that awaits call after call would starve it. */
const MAX_SETTLED_AT_ONCE = 32
let settledAtOnce = 0

/** Returns the function that starts calls of a native plugin. */
function caller (native) {
  const call = native.caller(boundary)

  /** Starts a call, and returns the outcome for `handleStarted`. A `timeoutMs` of 0 stands for the plugin's own limit. */
  return function start (number, exportNumber, input, timeoutMs) {
    if (!putIntoInbox(input ?? '')) return native.callWith(number, exportNumber, input, timeoutMs, boundary)
    const isOnly = isSequential && unfinished === backgroundJobs
    // Scheduled before anything can be taken, as the caller may be interrupted afterwards.
    if (isOnly && !isReleaseScheduled) {
      setImmediate(releaseEventLoop)
      isReleaseScheduled = true
    }
    header[HEADER_NUMBER] = number
    header[HEADER_EXPORT] = exportNumber
    header[HEADER_TIMEOUT_MS] = timeoutMs
    header[HEADER_IS_ALONE] = isOnly ? 1 : 0
    header[HEADER_MAY_TAKE] = hasUnsettled() || settledAtOnce >= MAX_SETTLED_AT_ONCE ? 0 : 1
    return call(shared, outOfBand)
  }
}

/** Reacts to the outcome of a start: wakes a thread, or settles completions. */
function handleStarted (native, outcome) {
  if (outcome === CALL_MUST_WAKE) {
    wake(native)
  } else if (outcome === CALL_TAKEN) {
    settledAtOnce++
    hasAwaiters = false
    settleTaken()
    if (hostCalls.length > 0) {
      settleOnNextTurn()
      if (runHostCalls()) settleNow()
    }
    isSequential = false
    resolved.then(markAwaitersResumed)
  } else if (outcome === CALL_MUST_TAKE) {
    settledAtOnce = 0
    setImmediate(settle)
  }
}

/** Loads a plugin and resolves to the native plugin, unless `signal` is aborted first. */
function open (options, store, signal) {
  const opened = complete(undefined, (number) => binding.openPlugin(number, options, store, boundary), signal)
  watchSignalListeners(binding.restoreSignalHandlers)
  return opened
}

/** Compiles a plugin into the compile cache, unless `signal` is aborted first. */
function fillCache (options, signal) {
  return complete(undefined, (number) => binding.precompile(number, options, boundary), signal)
}

/** Opens the store of a URL and resolves to the native store. */
function openStore (url, options) {
  return complete(undefined, (number) => binding.openStore(number, url, options, boundary))
}

/** Returns a native store with the operations of all stores, over a native MemoryStore. */
function storeOfMemory (native) {
  return binding.Store.ofMemory(native, boundary)
}

module.exports = { complete, completeInBackground, completeSync, isUnfinished, caller, fillCache, open, openStore, storeOfMemory }
