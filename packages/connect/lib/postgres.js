'use strict'

// Statements of guests on a pool of `pg`.

const { MAX_TIMER_MS, asInteger, describe, invalidArgument, isObject, pick } = require('extism-host/internal')
const { untilAborted, watchEnd } = require('./call-end.js')
const { Connection } = require('./connection.js')
const { peer } = require('./peer.js')
const { GuestError } = require('./protocol.js')
const { Slots } = require('./slots.js')
const { jsonTypes, parametersOf } = require('./sql-values.js')
const { transactionQuery } = require('./transaction-query.js')

const OPTIONS = {
  statements: 'statements', readOnly: 'readOnly', maxRows: 'maxRows', maxBytes: 'maxBytes', timeoutMs: 'timeoutMs'
}

const MAX_U31 = 2 ** 31 - 1

/** The connection of a canceled statement is terminated after this time: PL/pgSQL can catch a cancel. */
const CANCEL_MS = 1_000

function postgres (pool, options) {
  if (typeof pool?.connect !== 'function' || typeof pool.options?.max !== 'number') {
    throw invalidArgument(`postgres takes a Pool of pg, not ${describe(pool)}`)
  }
  if (pool.options.max < 2) {
    throw invalidArgument(`the pool has max ${pool.options.max}, and needs 2 or more: one connection stays free to cancel statements`)
  }
  const { Query, types } = peer('pg', () => require('pg'))
  const given = pick(options, OPTIONS, 'the options of postgres')
  const { statements, readOnly = true } = given
  const isFree = statements === 'any'
  if (!isFree && !(isObject(statements) && Object.values(statements).every((sql) => typeof sql === 'string'))) {
    throw invalidArgument('statements must be an object {name: SQL}, or \'any\'')
  }
  if (typeof readOnly !== 'boolean') throw invalidArgument(`readOnly must be a boolean, not ${describe(readOnly)}`)
  const named = new Map(isFree ? [] : Object.entries(statements))
  const limits = {
    maxRows: asInteger(given.maxRows, 'maxRows', 1_000, MAX_U31),
    maxBytes: asInteger(given.maxBytes, 'maxBytes', 2 ** 20, MAX_U31)
  }
  const timeoutMs = asInteger(given.timeoutMs, 'timeoutMs', 30_000, MAX_TIMER_MS)
  const begin = [`BEGIN TRANSACTION ${readOnly ? 'READ ONLY' : 'READ WRITE'}`, `SET LOCAL statement_timeout = ${timeoutMs}`]
  const TransactionQuery = transactionQuery(Query)
  const jsonParsers = jsonTypes(types)
  const slots = new Slots(pool.options.max - 1)

  function sqlOf ({ statement, sql }) {
    if (isFree) {
      // In the protocol, a zero ends the text.
      if (typeof sql !== 'string' || sql.includes('\0')) throw new GuestError('INVALID_REQUEST', 'sql must be a string without zeros')
      return sql
    }
    if (sql !== undefined) throw new GuestError('NOT_ALLOWED', 'this plugin may only run the statements of the host, by name')
    const text = named.get(statement)
    if (text === undefined) throw new GuestError('NOT_ALLOWED', 'the host has no statement of this name')
    return text
  }

  async function connectPool () {
    await slots.acquire()
    try {
      return await pool.connect()
    } catch (cause) {
      slots.release()
      throw guestErrorOf(cause)
    }
  }

  function giveBack (client, isBroken) {
    client.release(isBroken)
    slots.release()
  }

  async function run (request, context) {
    const text = sqlOf(request)
    const values = parametersOf(request.params)
    const ending = watchEnd(context, timeoutMs)
    try {
      const client = await untilAborted(ending.signal, connectPool(), giveBack)
      let isBroken = true
      // Without a listener, a connection that is lost between two statements ends the process.
      const ignore = () => {}
      client.on('error', ignore)
      try {
        const result = await transaction(client, ending.signal, { text, values })
        isBroken = false
        return result
      } catch (error) {
        isBroken = !(error instanceof RolledBack)
        throw isBroken ? error : error.cause
      } finally {
        client.off('error', ignore)
        giveBack(client, isBroken)
      }
    } finally {
      ending.dispose()
    }
  }

  /** Throws a `RolledBack` if the connection can be used again. */
  async function transaction (client, signal, { text, values }) {
    const control = (sql) => untilAborted(signal, client.query(sql).catch((cause) => { throw guestErrorOf(cause) }), () => {})
    const rows = new Rows(limits)
    const query = new TransactionQuery({ begin, isReadOnly: readOnly, text, values, types: jsonParsers })
    const done = new Promise((resolve, reject) => {
      query.on('row', (row, result) => {
        if (rows.add(row, result.fields)) stop()
      })
      query.on('end', resolve)
      query.on('error', reject)
    })
    let stopping
    const stop = () => { stopping ??= cancel(client, done) }
    if (signal.aborted) throw new RolledBack(signal.reason)
    signal.addEventListener('abort', stop, { once: true })
    let results
    let failure
    try {
      client.query(query)
      results = await done
    } catch (cause) {
      failure = guestErrorOf(cause)
    } finally {
      signal.removeEventListener('abort', stop)
    }
    if (stopping !== undefined) {
      // A cancel that comes late would hit the next statement, so this connection is closed.
      await stopping
      throw signal.aborted ? signal.reason : rows.excess ?? failure
    }
    if (failure !== undefined) await control('ROLLBACK')
    else if (!readOnly) await control('COMMIT')
    // Free SQL can leave settings, locks and temporary tables behind.
    if (isFree) await control('DISCARD ALL')
    if (failure !== undefined) throw new RolledBack(failure)
    return { rows: rows.toJson(), rowCount: results[begin.length]?.rowCount ?? 0 }
  }

  async function cancel (client, done) {
    const settled = done.catch(() => {})
    for (const signal of ['pg_cancel_backend', 'pg_terminate_backend']) {
      // Not awaited: others may have taken all connections. A statement that has ended by then is not hit.
      pool.query(`SELECT ${signal}($1)`, [client.processID]).catch(() => {})
      let timer
      const late = new Promise((resolve) => { timer = setTimeout(resolve, CANCEL_MS, 'late') })
      const outcome = await Promise.race([settled, late])
      clearTimeout(timer)
      if (outcome !== 'late') return
    }
    client.connection.stream.destroy()
  }

  return new Connection({
    query: async (request, payload, context) => `{"rows":${(await run(request, context)).rows}}`,
    execute: async (request, payload, context) => `{"rowCount":${(await run(request, context)).rowCount}}`
  })
}

/** A statement has failed or was not begun, and no transaction is open: the connection can be used again. */
class RolledBack extends Error {
  constructor (cause) {
    super('rolled back', { cause })
  }
}

/** The rows of a result, as JSON, until a limit is exceeded. */
class Rows {
  #limits
  #keys
  #rows = []
  #bytes = 0
  excess

  constructor (limits) {
    this.#limits = limits
  }

  /** Adds a row, whose values are JSON already; whether the result has become too large. */
  add (values, fields) {
    if (this.excess !== undefined) return false
    const { maxRows, maxBytes } = this.#limits
    this.#keys ??= fields.map(({ name }) => `${JSON.stringify(name)}:`)
    const row = `{${values.map((value, index) => this.#keys[index] + (value ?? 'null')).join(',')}}`
    this.#bytes += Buffer.byteLength(row) + 1
    this.#rows.push(row)
    if (this.#rows.length > maxRows) this.excess = new GuestError('TOO_LARGE', `a result has up to ${maxRows} rows`)
    else if (this.#bytes > maxBytes) this.excess = new GuestError('TOO_LARGE', `a result has up to ${maxBytes} bytes`)
    if (this.excess === undefined) return false
    this.#rows = []
    return true
  }

  toJson () {
    return `[${this.#rows.join(',')}]`
  }
}

/** Codes of SQL errors (https://www.postgresql.org/docs/current/errcodes-appendix.html), from the most specific. */
const SQL_ERRORS = [
  ['08P01', 'INVALID_REQUEST', 'the statement has another number of parameters'],
  ['25006', 'NOT_ALLOWED', 'this plugin may only read'],
  ['42501', 'NOT_ALLOWED', 'the database refuses this'],
  ['57014', 'TIMEOUT', 'the statement was canceled'],
  ['22', 'INVALID_VALUE', 'a value is not valid for its type'],
  ['23', 'CONSTRAINT', 'a constraint is violated'],
  ['40', 'CONFLICT', 'other transactions are in the way; try again'],
  ['08', 'UNAVAILABLE', 'the database cannot be reached'],
  ['28', 'UNAVAILABLE', 'the database cannot be reached'],
  ['53', 'UNAVAILABLE', 'the database has no resources left'],
  ['57', 'UNAVAILABLE', 'the database cannot be reached']
]

/** The server's messages can quote values, users and addresses, so the guest is told the SQLSTATE only. */
function guestErrorOf (cause) {
  if (cause instanceof GuestError) return cause
  const sqlstate = typeof cause?.severity === 'string' ? cause.code : undefined
  if (sqlstate === undefined) return new GuestError('UNAVAILABLE', 'the database cannot be reached', { cause })
  const [, code, message] = SQL_ERRORS.find(([start]) => sqlstate.startsWith(start)) ?? ['', 'SQL_ERROR', 'the statement is not valid']
  return new GuestError(code, message, { cause, sqlstate })
}

module.exports = { postgres }
