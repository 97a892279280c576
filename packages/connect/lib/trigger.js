'use strict'

// Options, counters and the limit of concurrent calls, for all triggers.

const { MAX_TIMER_MS, MAX_U32, asInteger, describe, invalidArgument, pick } = require('extism-host/internal')

/** The options that all triggers take. */
const COMMON = ['plugin', 'function', 'concurrency', 'timeoutMs', 'onError']

/** The options of triggers that deliver a message again if its call fails. */
const REDELIVERY = ['maxDeliver', 'backoffMs']

const DEFAULT_MAX_DELIVER = 5
const DEFAULT_BACKOFF_MS = [1_000, 5_000, 30_000]

/** Errors that say nothing about the message: they never lead to the dead letters. */
const TRANSIENT = new Set(['CLOSED', 'QUEUE_FULL', 'UNAVAILABLE', 'OUT_OF_RESOURCES', 'STORE_UNAVAILABLE'])

const isTransient = (error) => TRANSIENT.has(error?.code)

const codeOf = (error) => typeof error?.code === 'string' ? error.code : 'FAILED'

/** Checks the common options of a trigger. Returns them with its own options, which are not checked. */
function asTriggerOptions (options, own, what) {
  const keys = [...COMMON, ...own]
  const { plugin, function: functionName, onError, ...given } = pick(options, Object.fromEntries(keys.map((key) => [key, key])), `the options of ${what}`)
  if (typeof plugin?.call !== 'function') throw invalidArgument(`plugin must be a plugin, not ${describe(plugin)}`)
  if (typeof functionName !== 'string') throw invalidArgument(`function must be the name of a function, not ${describe(functionName)}`)
  if (typeof onError !== 'function') throw invalidArgument(`onError must be a function, not ${describe(onError)}`)
  return {
    ...given,
    plugin,
    functionName,
    onError,
    concurrency: asInteger(given.concurrency, 'concurrency', 16, MAX_U32),
    timeoutMs: asInteger(given.timeoutMs, 'timeoutMs', undefined, MAX_TIMER_MS)
  }
}

/** Checks the options of redelivery. `deadLetters` names the option that says where to publish dead letters. */
function asRedelivery (options, deadLetters) {
  const { maxDeliver, backoffMs = DEFAULT_BACKOFF_MS, [deadLetters]: destination } = options
  if (maxDeliver !== undefined && destination === undefined) {
    throw invalidArgument(`maxDeliver needs ${deadLetters}: without it, a message would be lost after its last delivery`)
  }
  if (!Array.isArray(backoffMs) || backoffMs.length === 0) {
    throw invalidArgument(`backoffMs must be an array of milliseconds such as [1000, 5000], not ${describe(backoffMs)}`)
  }
  for (const pause of backoffMs) asInteger(pause ?? null, 'each of backoffMs', undefined, MAX_TIMER_MS, 0)
  return {
    maxDeliver: destination === undefined ? Infinity : asInteger(maxDeliver, 'maxDeliver', DEFAULT_MAX_DELIVER, MAX_U32),
    backoffMs
  }
}

/** The pause before the next delivery, after so many. */
const pauseAfter = (deliveries, backoffMs) => backoffMs[Math.min(deliveries, backoffMs.length) - 1]

/** Calls the plugin of a trigger. */
function callPlugin ({ plugin, functionName, timeoutMs }, input) {
  return plugin.call(functionName, input, undefined, timeoutMs === undefined ? undefined : { timeoutMs })
}

const newCounts = () => ({ received: 0, handled: 0, failed: 0, redelivered: 0, deadLettered: 0, dropped: 0 })

/** A queue whose operations take the same time at any length; an array's `shift` moves all others. */
class Fifo {
  #items = []
  #first = 0

  get length () {
    return this.#items.length - this.#first
  }

  add (item) {
    this.#items.push(item)
  }

  addFirst (item) {
    if (this.#first > 0) this.#items[--this.#first] = item
    else this.#items.unshift(item)
  }

  take () {
    const item = this.#items[this.#first]
    this.#items[this.#first++] = undefined
    if (this.#first > 1_000 && this.#first > this.length) {
      this.#items = this.#items.slice(this.#first)
      this.#first = 0
    }
    return item
  }
}

/** Runs functions together, soon: clients write what is sent in one step to the socket at once. */
class Batch {
  #functions = []

  add (run) {
    if (this.#functions.push(run) === 1) setImmediate(() => this.flush())
  }

  flush () {
    for (const run of this.#functions.splice(0)) run()
  }
}

/** Handles up to `concurrency` messages at the same time, and the others in their order. */
class MessageQueue {
  #concurrency
  #handle
  #waiting = new Fifo()
  #inFlight = 0
  #idle = []

  /** `handle` returns a promise, which must not reject. */
  constructor (concurrency, handle) {
    this.#concurrency = concurrency
    this.#handle = handle
  }

  get inFlight () {
    return this.#inFlight
  }

  get pending () {
    return this.#waiting.length
  }

  get isBusy () {
    return this.#inFlight >= this.#concurrency
  }

  add (message) {
    if (this.isBusy) this.#waiting.add(message)
    else this.#run(message)
  }

  /** Adds a message before all others that wait. */
  addFirst (message) {
    if (this.isBusy) this.#waiting.addFirst(message)
    else this.#run(message)
  }

  #run (message) {
    this.#inFlight++
    this.#handle(message).then(this.#end)
  }

  #end = () => {
    this.#inFlight--
    if (this.#waiting.length > 0) this.#run(this.#waiting.take())
    else if (this.#inFlight === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }

  /** Resolves once all messages are handled. */
  async idle () {
    if (this.#inFlight > 0) await new Promise((resolve) => this.#idle.push(resolve))
  }
}

module.exports = { Batch, MessageQueue, REDELIVERY, asRedelivery, asTriggerOptions, callPlugin, codeOf, isTransient, newCounts, pauseAfter }
