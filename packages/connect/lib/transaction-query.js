'use strict'

/**
 * Queries of `pg` that begin a transaction in the same round trip, and roll it back if they may only read. The server
 * skips the statement if the transaction cannot begin, and whatever follows if the statement fails.
 */
function transactionQuery (Query) {
  return class extends Query {
    #begin
    #isReadOnly

    constructor ({ begin, isReadOnly, ...config }) {
      // The extended protocol takes one statement only, so a guest cannot end the transaction and go on.
      super({ ...config, queryMode: 'extended', rowMode: 'array' })
      this.#begin = begin
      this.#isReadOnly = isReadOnly
    }

    prepare (connection) {
      for (const sql of this.#begin) execute(connection, sql)
      super.prepare(connection)
    }

    // Called by `prepare` for the last messages of the round trip.
    _getRows (connection) {
      connection.execute({ portal: this.portal })
      if (this.#isReadOnly) execute(connection, 'ROLLBACK')
      connection.sync()
    }

    handleCopyInResponse (connection) {
      connection.sendCopyFail('guests cannot copy')
      // The server has ignored the first one: it was waiting for data.
      connection.sync()
    }
  }
}

function execute (connection, sql) {
  connection.parse({ text: sql })
  connection.bind({})
  connection.execute({})
}

module.exports = { transactionQuery }
