'use strict'

// Host functions in JavaScript. `src/binding/host_call.rs` is the Rust side.

const { AsyncLocalStorage, AsyncResource } = require('node:async_hooks')
const { asBytes } = require('./bytes.js')
const { CallContext, SECRET } = require('./call-context.js')
const { codedError, describe, invalidArgument } = require('./errors.js')
const { NestedCounts } = require('./nested-counts.js')
const { channels, isTraced, traceFunction } = require('./tracing.js')

// `src/binding/protocol.rs` explains the message of a host call.
const {
  KERNEL_NAMESPACE, RESERVED_PREFIX, BLOCK_INCLUDED, TYPE_I32, TYPE_I64, TYPE_F32, TYPE_F64,
  HOST_CALL_NUMBER, HOST_CALL_PLUGIN, HOST_CALL_FUNCTION, HOST_CALL_RESULT, HOST_CALL_COUNT, HOST_CALL_ARGUMENTS,
  ARGUMENT_TYPE, ARGUMENT_BITS, ARGUMENT_BLOCK_LENGTH, ARGUMENT_LENGTH
} = require('../binding.js')

/** The interval of the check that an initialization still runs. */
const INITIALIZATION_POLL_MS = 50

const converter = new DataView(new ArrayBuffer(8))

/**
 * The state of each plugin in JavaScript, by plugin id. It exists from before the plugin is loaded until the plugin
 * is closed or garbage-collected.
 */
const pluginStates = []
const freeIds = []

/** The host function that the current code runs in, across its awaits. */
const runningFunction = new AsyncLocalStorage()

/** Checks the option `functions`. Returns names and bodies, in the same order. */
function parseFunctions (functions = {}) {
  if (typeof functions !== 'object' || functions === null) {
    throw invalidArgument(`functions must be an object {namespace: {name: function}}, not ${describe(functions)}`)
  }
  const names = []
  const bodies = []
  for (const [namespace, members] of Object.entries(functions)) {
    if (namespace === KERNEL_NAMESPACE || namespace.startsWith(RESERVED_PREFIX)) {
      throw invalidArgument(`functions cannot be added to the namespace "${namespace}", which is reserved; use extism:host/user`)
    }
    if (typeof members !== 'object' || members === null) {
      throw invalidArgument(`functions["${namespace}"] must be an object {name: function}, not ${describe(members)}`)
    }
    for (const [name, body] of Object.entries(members)) {
      if (typeof body !== 'function') {
        throw invalidArgument(`functions["${namespace}"]["${name}"] must be a function, not ${describe(body)}`)
      }
      names.push({ namespace, name })
      bodies.push(body)
    }
  }
  return { names, bodies }
}

/** Creates the state of a plugin, before it is loaded. */
function addPluginState ({ name, names, bodies, logger, level, instances }) {
  const pluginId = freeIds.pop() ?? pluginStates.length
  const pluginState = {
    pluginId,
    // The plugin's name in errors.
    name,
    names,
    bodies,
    logger,
    level,
    instances,
    // The number of resets.
    resets: 0,
    // The number of host functions that run.
    pending: 0,
    // Host functions that wait for calls of their own plugin, each with the number of such calls.
    waiting: new Map(),
    // Host functions that run outside of any call, during an initialization.
    outsideCalls: new Set(),
    // Operations of guests on connections, by connection, operation and outcome.
    connectorCalls: new NestedCounts(),
    // The error that a host function threw outside of any call, during an initialization: `{ error }`.
    thrown: undefined
  }
  pluginStates[pluginId] = pluginState
  return pluginState
}

/** `reason` is the error of a plugin that could not be opened. */
function removePluginState (pluginState, reason) {
  if (pluginStates[pluginState.pluginId] !== pluginState) return
  pluginStates[pluginState.pluginId] = undefined
  freeIds.push(pluginState.pluginId)
  for (const running of pluginState.outsideCalls) running.end(() => reason ?? codedError('CLOSED', 'the plugin is closed'))
}

const stateCleanup = new FinalizationRegistry(removePluginState)

/** Decodes the message of a host call at an offset of the view. */
function decodeHostCall (view, offset, callState) {
  const number = (index) => view.getUint32(offset + index * 4, true)
  const end = HOST_CALL_ARGUMENTS + ARGUMENT_LENGTH * number(HOST_CALL_COUNT)
  const args = []
  let blocks
  let start = offset + end * 4
  for (let at = HOST_CALL_ARGUMENTS; at < end; at += ARGUMENT_LENGTH) {
    const type = number(at + ARGUMENT_TYPE)
    const length = number(at + ARGUMENT_BLOCK_LENGTH)
    if ((type & BLOCK_INCLUDED) !== 0 && length > 0) {
      blocks ??= []
      blocks.push({ offset: number(at + ARGUMENT_BITS), buffer: view.buffer, start, length })
      start += length
    }
    args.push(decodeArgument(view, offset + (at + ARGUMENT_BITS) * 4, type & ~BLOCK_INCLUDED))
  }
  return {
    number: number(HOST_CALL_NUMBER),
    pluginState: pluginStates[number(HOST_CALL_PLUGIN)],
    body: number(HOST_CALL_FUNCTION),
    result: number(HOST_CALL_RESULT),
    args,
    blocks,
    callState
  }
}

function decodeArgument (view, at, type) {
  switch (type) {
    case TYPE_I32: return view.getInt32(at, true)
    case TYPE_I64: return view.getBigInt64(at, true)
    case TYPE_F32: return view.getFloat32(at, true)
    default: return view.getFloat64(at, true)
  }
}

/**
 * Runs the function of a host call and answers it. Returns true if that happened at once; if the function returned
 * a promise, returns false, answers when that settles, and then calls `onAnswered`.
 */
function run (boundary, hostCall, onAnswered) {
  const { number, pluginState, callState, blocks } = hostCall
  const body = pluginState?.bodies[hostCall.body]
  if (body === undefined) {
    boundary.fail(number, 'the plugin is closed')
    return true
  }
  // The call was aborted, so nobody waits for the host function.
  if (callState?.hasEnded) {
    boundary.fail(number, 'the call has ended')
    return true
  }
  const context = new CallContext(SECRET, boundary, number, blocks, pluginState, callState?.hostContext)
  const end = (reason) => {
    if (running.hasEnded) return
    running.hasEnded = true
    clearInterval(running.poll)
    pluginState.pending--
    pluginState.waiting.delete(running)
    pluginState.outsideCalls.delete(running)
    CallContext.end(context, reason)
  }
  const running = { pluginState, end, hasEnded: false, poll: undefined }
  pluginState.pending++
  // The function's access to the guest ends with its call, even if it still awaits something. A call never has more
  // than one running host function, because the guest waits for it.
  if (callState !== undefined) callState.running = running
  else pluginState.outsideCalls.add(running)
  const returned = (value) => {
    try {
      answer(boundary, hostCall, value)
    } catch (error) {
      return failed(error)
    }
    end()
    return true
  }
  const failed = (error) => {
    const thrown = { error }
    if (callState !== undefined) callState.thrown = thrown
    else pluginState.thrown = thrown
    boundary.fail(number, 'a host function has failed')
    end()
    return true
  }
  const runBody = () => runningFunction.run(running, body, context, ...hostCall.args)
  const start = isTraced(channels.hostFunction)
    ? () => traceFunction(channels.hostFunction, traceMessage(hostCall), runBody)
    : runBody
  let value
  let isAsync
  try {
    value = callState?.context === undefined ? start() : callState.context.runInAsyncScope(start)
    isAsync = typeof value?.then === 'function'
  } catch (error) {
    return failed(error)
  }
  if (!isAsync) return returned(value)
  const promise = Promise.resolve(value)
  if (callState?.isSync) {
    failed(codedError('WOULD_DEADLOCK', 'callSync() waits for the plugin, so it cannot wait for the asynchronous host function ' +
      `${quoted(pluginState.names[hostCall.body])}; use call()`))
    // The call has failed already, so a later rejection is ignored.
    promise.catch(() => {})
    return true
  }
  if (callState === undefined) endWithInitialization(boundary, number, running)
  const then = (settle) => (value) => {
    settle(value)
    onAnswered()
  }
  promise.then(then(returned), then(failed))
  return false
}

/** Ends a running host function once Rust has interrupted its instance's initialization. Only calls have an event for that. */
function endWithInitialization (boundary, hostCall, running) {
  running.poll = setInterval(() => {
    if (boundary.length(hostCall, 0) < 0) running.end(() => codedError('TIMEOUT', 'the initialization of the instance has timed out'))
  }, INITIALIZATION_POLL_MS).unref()
}

/** The message about a host call on the channel `extism-host:host-function`. */
function traceMessage ({ pluginState: { name: plugin, version, names }, body, callState }) {
  const { namespace, name } = names[body]
  return { call: callState?.trace, plugin, version, namespace, function: name, around: undefined }
}

/** Answers with a value, converted as WebAssembly does it. For an i64, strings and bytes go into a block. */
function answer (boundary, hostCall, value) {
  const { number, result } = hostCall
  switch (result) {
    case TYPE_I32:
      boundary.answer(number, asNumber(hostCall, value) >>> 0, 0)
      return
    case TYPE_F32:
      converter.setFloat32(0, asNumber(hostCall, value), true)
      boundary.answer(number, converter.getUint32(0, true), 0)
      return
    case TYPE_F64:
      converter.setFloat64(0, asNumber(hostCall, value), true)
      break
    case TYPE_I64: {
      const bytes = typeof value === 'string' ? value : asBytes(value)
      if (bytes !== undefined) {
        boundary.answerWith(number, bytes)
        return
      }
      if (value !== undefined && value !== null && typeof value !== 'bigint' && !Number.isSafeInteger(value)) {
        throw wrongValue(hostCall, 'an offset (a bigint), a string or bytes', value)
      }
      converter.setBigInt64(0, BigInt(value ?? 0), true)
      break
    }
    default:
      boundary.answer(number, 0, 0)
      return
  }
  boundary.answer(number, converter.getUint32(0, true), converter.getUint32(4, true))
}

function asNumber (hostCall, value) {
  try {
    return Number(value ?? 0)
  } catch {
    throw wrongValue(hostCall, 'a number', value)
  }
}

function wrongValue ({ pluginState, body }, expected, value) {
  return invalidArgument(`the host function ${quoted(pluginState.names[body])} must return ${expected}, not ${describe(value)}`)
}

const quoted = ({ namespace, name }) => `"${namespace}" "${name}"`

/**
 * If a host function of this plugin is running, notes that it waits for a call of its own plugin. Throws if that call
 * would wait forever, because host functions that do the same occupy all instances. Returns the function that removes
 * the note, or `undefined`.
 */
function noteReentrantCall (pluginState) {
  const running = runningFunction.getStore()
  if (running === undefined || running.pluginState !== pluginState || running.hasEnded) return undefined
  const { waiting } = pluginState
  const others = waiting.get(running) ?? 0
  if (others === 0 && waiting.size + 1 >= pluginState.instances) {
    throw codedError('WOULD_DEADLOCK', 'plugin is not reentrant')
  }
  waiting.set(running, others + 1)
  return () => {
    if (!waiting.has(running)) return
    const left = waiting.get(running) - 1
    if (left > 0) waiting.set(running, left)
    else waiting.delete(running)
  }
}

/** Whether all instances of the plugin wait for host functions in JavaScript. */
function isBlockedOnJs (pluginState) {
  return pluginState.pending >= pluginState.instances
}

module.exports = {
  AsyncResource, addPluginState, parseFunctions, stateCleanup, decodeHostCall, isBlockedOnJs, removePluginState, run, pluginStates, noteReentrantCall
}
