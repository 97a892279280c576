'use strict'

// How statements of guests are sent: those that the host has named, and free SQL. Each is a transaction.

const { createHash } = require('node:crypto')
const { Query } = require('./postgres-query.js')

/** SQL that each connection prepares once. */
class PreparedSql {
  constructor (text) {
    this.text = text
    // The host's own statements on the same connection do not have such names.
    this.name = `extism-host-${createHash('sha256').update(text).digest('hex').slice(0, 16)}`
  }

  /** Prepares it, in place of a statement of this name that a pooler, for example, has left. */
  prepare (connection) {
    connection.close({ type: 'S', name: this.name })
    connection.parse(this)
  }

  execute (connection, values) {
    connection.bind({ statement: this.name, values })
    connection.execute()
  }
}

/** A connection has lost a prepared statement, or a change of a table has made it invalid. */
const STALE = new Set(['26000', '0A000'])

/** Statements by name, which stay prepared. */
class NamedStatements {
  #byName
  #isReadOnly
  #settings
  /** The columns of prepared statements, by connection and statement. */
  #prepared = new WeakMap()

  constructor (statements, { isReadOnly, timeoutMs }) {
    this.#byName = new Map(Object.entries(statements).map(([name, text]) => [name, new PreparedSql(text)]))
    this.#isReadOnly = isReadOnly
    // A query, because SET LOCAL needs BEGIN, which is a command more. After a query, nothing can make the transaction
    // read-write again.
    this.#settings = new PreparedSql(`SELECT set_config('statement_timeout', '${timeoutMs}', true)` +
      (isReadOnly ? ", set_config('transaction_read_only', 'on', true)" : ''))
  }

  get (name) {
    return this.#byName.get(name)
  }

  /** Returns the query that runs a statement. If it fails with the connection's prepared statements, it runs again. */
  query (client, statement, values, rows, onEnd) {
    let prepared = this.#prepared.get(client)
    if (prepared === undefined) this.#prepared.set(client, prepared = new Map())
    const columns = prepared.get(statement)
    const isReused = prepared.has(this.#settings)
    if (columns !== undefined) rows.columns = columns
    const send = (connection, query) => {
      if (!isReused) this.#settings.prepare(connection)
      this.#settings.execute(connection)
      if (columns === undefined) {
        statement.prepare(connection)
        connection.describe({ type: 'S', name: statement.name })
      }
      statement.execute(connection, values)
      // Without a transaction block, the sync commits.
      if (this.#isReadOnly || columns?.length === 0) query.sync(connection)
      else query.leaveOpen(connection)
    }
    return new Query({
      rows,
      commandsBefore: 1,
      send,
      commit () {},
      onEnd: (error, rowCount) => {
        if (error === undefined) {
          prepared.set(this.#settings).set(statement, rows.columns)
        } else if (isReused && STALE.has(error.code)) {
          this.#prepared.delete(client)
          client.query(this.query(client, statement, values, rows, onEnd))
          return
        }
        onEnd(error, rowCount)
      }
    })
  }
}

function execute (connection, text) {
  connection.parse({ text })
  connection.bind({})
  connection.execute()
}

/** Returns the query that runs free SQL. A transaction that fails stays open. */
function freeQuery ({ sql, values, isReadOnly, timeoutMs }, rows, onEnd) {
  return new Query({
    rows,
    commandsBefore: 2,
    send (connection, query) {
      execute(connection, `BEGIN TRANSACTION ${isReadOnly ? 'READ ONLY' : 'READ WRITE'}`)
      execute(connection, `SET LOCAL statement_timeout = ${timeoutMs}`)
      connection.parse({ text: sql })
      connection.bind({ values })
      connection.describe({ type: 'P' })
      connection.execute()
      if (!isReadOnly) {
        query.leaveOpen(connection)
        return
      }
      // A function in SQL can make the transaction read-write, so nothing is committed.
      execute(connection, 'ROLLBACK')
      query.sync(connection)
    },
    commit: (connection) => execute(connection, 'COMMIT'),
    onEnd
  })
}

module.exports = { NamedStatements, freeQuery }
