'use strict'

// Host functions in JavaScript: which there are, and how they are run. `src/binding/host_call.rs` is
// the other side.

const { AsyncLocalStorage } = require('node:async_hooks')
const { asBytes } = require('./bytes.js')
const { CallContext, SECRET } = require('./call-context.js')
const { codedError, describe, invalidArgument } = require('./errors.js')

// A message of a host call is explained in `src/binding/protocol.rs`.
const {
  KERNEL_NAMESPACE, RESERVED_PREFIX, BLOCK_INCLUDED, TYPE_I32, TYPE_I64, TYPE_F32, TYPE_F64,
  HOST_CALL_NUMBER, HOST_CALL_PLUGIN, HOST_CALL_FUNCTION, HOST_CALL_RESULT, HOST_CALL_COUNT, HOST_CALL_ARGUMENTS,
  ARGUMENT_TYPE, ARGUMENT_BITS, ARGUMENT_BLOCK_LENGTH, ARGUMENT_LENGTH
} = require('../binding.js')

const converter = new DataView(new ArrayBuffer(8))

/**
 * What plugins have in JavaScript, by the plugin's id: their functions and their loggers. A state is there from
 * before its plugin is loaded until that has been closed or forgotten.
 */
const pluginStates = []
const freeIds = []

/** The host function that runs, or on whose behalf something runs. */
const current = new AsyncLocalStorage()

/** The names of functions, and the functions, in the same order. */
function asFunctions (functions = {}) {
  if (typeof functions !== 'object' || functions === null) {
    throw invalidArgument(`functions must be an object {namespace: {name: function}}, not ${describe(functions)}`)
  }
  const names = []
  const bodies = []
  for (const [namespace, members] of Object.entries(functions)) {
    if (namespace === KERNEL_NAMESPACE || namespace.startsWith(RESERVED_PREFIX)) {
      throw invalidArgument(`functions cannot be added to "${namespace}", which is Extism's own; use extism:host/user`)
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

/** Makes the state of a plugin that is to be loaded. */
function addPluginState ({ name, names, bodies, logger, level, instances }) {
  const pluginId = freeIds.pop() ?? pluginStates.length
  const pluginState = {
    pluginId,
    // What errors call it.
    name,
    names,
    bodies,
    logger,
    level,
    instances,
    // How often the plugin has been reset.
    resets: 0,
    // Host functions that have not returned.
    pending: 0,
    // Those that wait for calls of their own plugin, each with how many.
    waiting: new Map(),
    // What a host function has thrown that no call was part of.
    thrown: undefined
  }
  pluginStates[pluginId] = pluginState
  return pluginState
}

function removePluginState (pluginState) {
  if (pluginStates[pluginState.pluginId] !== pluginState) return
  pluginStates[pluginState.pluginId] = undefined
  freeIds.push(pluginState.pluginId)
}

const forgotten = new FinalizationRegistry(removePluginState)

/** Reads the message of the other side that is at the offset of the view. */
function hostCallOf (view, offset, callState) {
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
    args.push(argument(view, offset + (at + ARGUMENT_BITS) * 4, type & ~BLOCK_INCLUDED))
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

function argument (view, at, type) {
  switch (type) {
    case TYPE_I32: return view.getInt32(at, true)
    case TYPE_I64: return view.getBigInt64(at, true)
    case TYPE_F32: return view.getFloat32(at, true)
    default: return view.getFloat64(at, true)
  }
}

/**
 * Runs the function of a host call, and answers it: at once, and returns true, or when its promise is settled, and
 * calls `answered` then.
 */
function run (boundary, hostCall, answered) {
  const { number, pluginState, callState, blocks } = hostCall
  const body = pluginState?.bodies[hostCall.body]
  if (body === undefined) {
    boundary.fail(number, 'the plugin is closed')
    return true
  }
  // Aborted: nobody waits for it.
  if (callState?.isOver) {
    boundary.fail(number, 'the call is over')
    return true
  }
  const context = new CallContext(SECRET, boundary, number, blocks, pluginState, callState?.hostContext)
  const end = () => {
    if (running.isOver) return
    running.isOver = true
    pluginState.pending--
    pluginState.waiting.delete(running)
    CallContext.end(context)
  }
  const running = { pluginState, end, isOver: false }
  pluginState.pending++
  // Whatever it waits for, it ends with its call. There is never more than one: the guest waits for it.
  if (callState !== undefined) callState.running = running
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
  const start = () => current.run(running, body, context, ...hostCall.args)
  let value
  let isAsync
  try {
    value = callState?.inContext === undefined ? start() : callState.inContext(start)
    isAsync = typeof value?.then === 'function'
  } catch (error) {
    return failed(error)
  }
  if (!isAsync) return returned(value)
  const promise = Promise.resolve(value)
  if (callState?.isSync) {
    failed(codedError('WOULD_DEADLOCK', 'callSync() waits for the plugin, so it cannot wait for the asynchronous host function ' +
      `${quoted(pluginState.names[hostCall.body])}; use call()`))
    // What it rejects with is of no use to anybody any more.
    promise.catch(() => {})
    return true
  }
  const then = (settle) => (value) => {
    settle(value)
    answered()
  }
  promise.then(then(returned), then(failed))
  return false
}

/** Converts as WebAssembly does, and besides makes a block of what is no number. */
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
 * Notes that the host function on whose behalf this is called, if one is, waits for a call of its own
 * plugin. Throws where that call would wait for ever: all instances are taken by functions that do so.
 * Returns what ends the note.
 */
function waitForOwn (pluginState) {
  const running = current.getStore()
  if (running === undefined || running.pluginState !== pluginState || running.isOver) return undefined
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

/** Whether none of the plugin's instances goes on before JavaScript does. */
function isStandingStill (pluginState) {
  return pluginState.pending >= pluginState.instances
}

module.exports = {
  AsyncLocalStorage, addPluginState, asFunctions, forgotten, hostCallOf, isStandingStill, removePluginState, run, pluginStates, waitForOwn
}
