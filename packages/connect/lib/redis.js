'use strict'

// Keys and channels of Redis, on a client of the package `redis`.

const { MAX_TIMER_MS, asInteger, describe, invalidArgument, pick } = require('extism-host/internal')
const { inTime } = require('./call-end.js')
const { Connection } = require('./connection.js')
const { GuestError } = require('./protocol.js')

const OPTIONS = { read: 'read', write: 'write', publish: 'publish', maxValueBytes: 'maxValueBytes', maxKeys: 'maxKeys', timeoutMs: 'timeoutMs' }

const METHODS = ['get', 'set', 'del', 'publish', 'scanIterator']

const MAX_U31 = 2 ** 31 - 1
const MAX_NAME_BYTES = 1024

/** Matching costs the server exponentially more with each wildcard. */
const MAX_WILDCARDS = 3

function redis (client, options = {}) {
  if (!METHODS.every((name) => typeof client?.[name] === 'function')) {
    throw invalidArgument(`redis takes a client of the package redis, not ${describe(client)}`)
  }
  const given = pick(options, OPTIONS, 'the options of redis')
  const mayRead = nameMatcher(given.read, 'read')
  const mayWrite = nameMatcher(given.write, 'write')
  const mayPublish = nameMatcher(given.publish, 'publish')
  const maxValueBytes = asInteger(given.maxValueBytes, 'maxValueBytes', 2 ** 20, MAX_U31)
  const maxKeys = asInteger(given.maxKeys, 'maxKeys', 1_000, MAX_U31)
  const timeoutMs = asInteger(given.timeoutMs, 'timeoutMs', 30_000, MAX_TIMER_MS)

  /** The client keeps commands while it is not connected, however long that takes. */
  const run = (context, work) => inTime(context, timeoutMs, (isOver) => work(isOver).catch((cause) => { throw guestErrorOf(cause) }))

  function checkSize (bytes) {
    if (bytes > maxValueBytes) throw new GuestError('TOO_LARGE', `a value has up to ${maxValueBytes} bytes`)
  }

  return new Connection({
    async publish ({ subject }, payload, context) {
      checkName(subject, 'subject', mayPublish, 'channel')
      checkSize(payload.length)
      await run(context, () => client.publish(subject, Buffer.from(payload)))
      return '{}'
    },

    async get ({ key }, payload, context) {
      checkName(key, 'key', mayRead, 'key')
      const value = await run(context, () => client.get(key))
      if (value === null) throw new GuestError('NOT_FOUND', 'the key has no value')
      checkSize(Buffer.byteLength(value))
      return value
    },

    async set ({ key, value }, payload, context) {
      checkName(key, 'key', mayWrite, 'key')
      if (typeof value !== 'string') throw new GuestError('INVALID_REQUEST', 'value must be a string')
      checkSize(Buffer.byteLength(value))
      await run(context, () => client.set(key, value))
      return key
    },

    async delete ({ key }, payload, context) {
      checkName(key, 'key', mayWrite, 'key')
      await run(context, () => client.del(key))
      return key
    },

    async keys ({ pattern }, payload, context) {
      checkName(pattern, 'pattern', () => true, 'key')
      if (pattern.split('*').length - 1 > MAX_WILDCARDS) throw new GuestError('INVALID_REQUEST', `a pattern has up to ${MAX_WILDCARDS} wildcards`)
      return run(context, async (isOver) => {
        const found = new Set()
        // A scan, because KEYS would block the server.
        for await (const keys of client.scanIterator({ MATCH: pattern, COUNT: 1_000 })) {
          if (isOver()) break
          for (const key of keys) if (mayRead(key)) found.add(key)
          if (found.size > maxKeys) throw new GuestError('TOO_LARGE', `a result has up to ${maxKeys} keys`)
        }
        return [...found]
      })
    }
  })
}

/** A function that tells whether a name is one of these, or begins with one that ends with `*`. */
function nameMatcher (patterns = [], option) {
  if (!Array.isArray(patterns) || !patterns.every((pattern) => typeof pattern === 'string')) {
    throw invalidArgument(`${option} must be an array of names such as 'visits:*', not ${describe(patterns)}`)
  }
  return (name) => patterns.some((pattern) => pattern.endsWith('*') ? name.startsWith(pattern.slice(0, -1)) : name === pattern)
}

function checkName (name, field, isAllowed, what) {
  if (typeof name !== 'string' || name === '' || Buffer.byteLength(name) > MAX_NAME_BYTES) {
    throw new GuestError('INVALID_REQUEST', `${field} must be a string of up to ${MAX_NAME_BYTES} bytes`)
  }
  if (!isAllowed(name)) throw new GuestError('NOT_ALLOWED', `this plugin may not use this ${what}`)
}

function guestErrorOf (cause) {
  if (cause instanceof GuestError) return cause
  if (/^(NOPERM|NOAUTH|READONLY)/.test(cause?.message)) return new GuestError('NOT_ALLOWED', 'the server refuses this', { cause })
  if (/^WRONGTYPE/.test(cause?.message)) return new GuestError('INVALID_VALUE', 'the key has a value of another type', { cause })
  return new GuestError('UNAVAILABLE', 'the server cannot be reached', { cause })
}

module.exports = { redis }
