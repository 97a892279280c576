'use strict'

// Statements of guests on a pool of `pg`.

const { MAX_TIMER_MS, asInteger, describe, invalidArgument, isObject, pick } = require('extism-host/internal')
const { watchEnd } = require('./call-end.js')
const { Connection } = require('./connection.js')
const { peer } = require('./peer.js')
const { GuestError } = require('./protocol.js')
const { NamedStatements, freeQuery } = require('./postgres-statements.js')
const { Rows } = require('./postgres-rows.js')
const { Slots } = require('./slots.js')
const { jsonTypes, parametersOf } = require('./sql-values.js')

const OPTIONS = {
  statements: 'statements', readOnly: 'readOnly', maxRows: 'maxRows', maxBytes: 'maxBytes', timeoutMs: 'timeoutMs'
}

const MAX_U31 = 2 ** 31 - 1

/** The connection of a canceled statement is terminated after this time: PL/pgSQL can catch a cancel. */
const CANCEL_MS = 1_000

/** The connections that guests may take, by pool: all plugins share them. */
const slotsByPool = new WeakMap()

/** The slots of a pool. One connection stays free to cancel statements. */
function slotsOf (pool) {
  if (!slotsByPool.has(pool)) slotsByPool.set(pool, new Slots(pool.options.max - 1))
  return slotsByPool.get(pool)
}

function postgres (pool, options) {
  if (typeof pool?.connect !== 'function' || typeof pool.options?.max !== 'number') {
    throw invalidArgument(`postgres takes a Pool of pg, not ${describe(pool)}`)
  }
  if (pool.options.max < 2) {
    throw invalidArgument(`the pool has max ${pool.options.max}, and needs 2 or more: one connection stays free to cancel statements`)
  }
  const { types } = peer('pg', () => require('pg'))
  const { prepareValue } = require('pg/lib/utils')
  const given = pick(options, OPTIONS, 'the options of postgres')
  const { statements, readOnly = true } = given
  const isFree = statements === 'any'
  if (!isFree && !(isObject(statements) && Object.values(statements).every((sql) => typeof sql === 'string'))) {
    throw invalidArgument('statements must be an object {name: SQL}, or \'any\'')
  }
  if (typeof readOnly !== 'boolean') throw invalidArgument(`readOnly must be a boolean, not ${describe(readOnly)}`)
  const limits = {
    maxRows: asInteger(given.maxRows, 'maxRows', 1_000, MAX_U31),
    maxBytes: asInteger(given.maxBytes, 'maxBytes', 2 ** 20, MAX_U31)
  }
  const timeoutMs = asInteger(given.timeoutMs, 'timeoutMs', 30_000, MAX_TIMER_MS)
  const transaction = { isReadOnly: readOnly, timeoutMs }
  const named = new NamedStatements(isFree ? {} : statements, transaction)
  const jsonParsers = jsonTypes(types)
  const slots = slotsOf(pool)

  /** Returns a function that makes the query of a request. */
  function queryOf ({ statement: name, sql, params }) {
    if (isFree) {
      // In the protocol, a zero ends the text.
      if (typeof sql !== 'string' || sql.includes('\0')) throw new GuestError('INVALID_REQUEST', 'sql must be a string without zeros')
      const values = parametersOf(params).map(prepareValue)
      return (client, rows, onEnd) => freeQuery({ sql, values, ...transaction }, rows, onEnd)
    }
    if (sql !== undefined) throw new GuestError('NOT_ALLOWED', 'this plugin may only run the statements of the host, by name')
    const statement = named.get(name)
    if (statement === undefined) throw new GuestError('NOT_ALLOWED', 'the host has no statement of this name')
    const values = parametersOf(params).map(prepareValue)
    return (client, rows, onEnd) => named.query(client, statement, values, rows, onEnd)
  }

  /** Resolves to what `replyOf` makes of the rows and of their number. Uses callbacks, because promises cost as much as the rest. */
  function run (request, context, replyOf) {
    const makeQuery = queryOf(request)
    return new Promise((resolve, reject) => {
      let client
      let reason
      let endCancel
      const stop = () => {
        rows.isUnwanted = true
        endCancel ??= cancel(client)
      }
      const rows = new Rows(limits, jsonParsers, stop)
      const unwatch = watchEnd(context, timeoutMs, (error) => {
        reason = error
        // Without a client, it still waits for one.
        if (client === undefined) reject(error)
        else stop()
      })
      slots.acquire(() => {
        if (reason !== undefined) return slots.release()
        pool.connect((cause, connected, release) => {
          if (cause !== undefined) {
            unwatch()
            slots.release()
            return reject(guestErrorOf(cause))
          }
          if (reason !== undefined) {
            release()
            return slots.release()
          }
          client = connected
          // Without a listener, a connection that is lost between two statements ends the process.
          client.on('error', ignore)
          client.query(makeQuery(client, rows, onEnd))

          function onEnd (cause, rowCount) {
            const finish = (isUsable) => {
              unwatch()
              endCancel?.()
              client.off('error', ignore)
              // A cancel that comes late would hit the next statement.
              release(!isUsable || endCancel !== undefined)
              slots.release()
              if (cause === undefined && rows.excess === undefined) resolve(replyOf(rows, rowCount))
              else reject(reason ?? rows.excess ?? guestErrorOf(cause))
            }
            if (cause === undefined && !isFree) finish(true)
            else makeUsable(client, cause).then(finish)
          }
        })
      })
    })
  }

  /** Resolves to whether a client can run statements of others, after one that may have failed. */
  async function makeUsable (client, cause) {
    if (cause !== undefined && isOfConnection(cause)) return false
    if (!isFree) return true
    try {
      if (cause !== undefined) await client.query('ROLLBACK')
      // Free SQL can leave settings, locks and temporary tables behind.
      await client.query('DISCARD ALL')
      return true
    } catch {
      return false
    }
  }

  /** Cancels a client's statement, by harder means whenever it goes on. Returns the function that gives up. */
  function cancel (client) {
    // Not awaited: others may have taken all connections.
    const signal = (name) => pool.query(`SELECT ${name}($1)`, [client.processID]).catch(ignore)
    const means = [() => signal('pg_cancel_backend'), () => signal('pg_terminate_backend'), () => client.connection.stream.destroy()]
    let timer
    const next = () => {
      means.shift()()
      if (means.length > 0) timer = setTimeout(next, CANCEL_MS)
    }
    next()
    return () => clearTimeout(timer)
  }

  return new Connection({
    query: (request, payload, context) => run(request, context, (rows) => `{"rows":${rows.toJson()}}`),
    execute: (request, payload, context) => run(request, context, (rows, rowCount) => `{"rowCount":${rowCount}}`)
  })
}

const ignore = () => {}

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

/** Whether an error has ended the connection. 08P01 is another number of parameters. */
const isOfConnection = (cause) => typeof cause.severity !== 'string' || /^(08(?!P01)|57P)/.test(cause.code)

/** The server's messages can quote values, users and addresses, so the guest is told the SQLSTATE only. */
function guestErrorOf (cause) {
  if (cause instanceof GuestError) return cause
  const sqlstate = typeof cause?.severity === 'string' ? cause.code : undefined
  if (sqlstate === undefined) return new GuestError('UNAVAILABLE', 'the database cannot be reached', { cause })
  const [, code, message] = SQL_ERRORS.find(([start]) => sqlstate.startsWith(start)) ?? ['', 'SQL_ERROR', 'the statement is not valid']
  return new GuestError(code, message, { cause, sqlstate })
}

module.exports = { postgres }
