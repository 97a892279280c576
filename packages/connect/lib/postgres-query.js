'use strict'

// Statements of guests in PostgreSQL's extended protocol, as `client.query` of `pg` takes them. All that surrounds a
// statement shares its round trip (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY).
// The protocol takes one statement at a time, so a guest cannot end the transaction and go on.

/**
 * One statement. `send` sends all that goes with it, and `commandsBefore` is the number of other commands that complete
 * first. `onEnd(error, rowCount)` is called once: with an error, or when the connection is ready for the next query.
 *
 * A transaction that may write must not end before all rows are there, because too many rows undo it. `send` leaves it
 * open then, and `commit` sends what ends it, in a second round trip.
 */
class Query {
  #rows
  #send
  #commit
  #commandsBefore
  #onEnd
  #isOpen = false
  #rowCount = 0

  constructor ({ rows, commandsBefore, send, commit, onEnd }) {
    this.#rows = rows
    this.#commandsBefore = commandsBefore
    this.#send = send
    this.#commit = commit
    this.#onEnd = onEnd
  }

  submit (connection) {
    connection.stream.cork()
    this.#send(connection, this)
    connection.stream.uncork()
  }

  leaveOpen (connection) {
    this.#isOpen = true
    connection.flush()
  }

  sync (connection) {
    this.#isOpen = false
    connection.sync()
  }

  handleRowDescription ({ fields }) {
    this.#rows.describe(fields)
  }

  handleDataRow ({ fields }) {
    if (this.#commandsBefore === 0) this.#rows.add(fields)
  }

  handleCommandComplete ({ text }, connection) {
    if (this.#commandsBefore > 0) {
      this.#commandsBefore--
    } else if (this.#commandsBefore === 0) {
      this.#commandsBefore = -1
      // Such as `INSERT 0 3` or `CREATE TABLE`.
      this.#rowCount = Number(/\d+$/.exec(text)?.[0] ?? 0)
      this.handleEmptyQuery(connection)
    }
  }

  handleEmptyQuery (connection) {
    if (!this.#isOpen) return
    if (this.#rows.isUnwanted) {
      // The server undoes what is not committed.
      connection.stream.destroy()
      return
    }
    this.#commit(connection)
    this.sync(connection)
  }

  handleCopyInResponse (connection) {
    connection.sendCopyFail('guests cannot copy')
    // The server has ignored the first one: it was waiting for data.
    this.sync(connection)
  }

  handleCopyData () {}

  handleError (error, connection) {
    if (this.#isOpen) this.sync(connection)
    this.#end(error)
  }

  handleReadyForQuery () {
    this.#end()
  }

  #end (error) {
    const onEnd = this.#onEnd
    this.#onEnd = () => {}
    onEnd(error, this.#rowCount)
  }
}

module.exports = { Query }
