'use strict'

// The rows of a result.

const { GuestError } = require('./protocol.js')

/** Rows as JSON, until a limit is exceeded. `onExcess` is called then. */
class Rows {
  columns = []
  /** The limit that is exceeded, as an error for the guest. */
  excess
  /** Whether a transaction that is still open must be undone. */
  isUnwanted = false
  #limits
  #types
  #onExcess
  #rows = []
  #bytes = 0

  constructor (limits, types, onExcess) {
    this.#limits = limits
    this.#types = types
    this.#onExcess = onExcess
  }

  describe (fields) {
    this.columns = fields.map(({ name, dataTypeID }) => ({ key: `${JSON.stringify(name)}:`, toJson: this.#types.getTypeParser(dataTypeID) }))
  }

  /** Adds a row of values in PostgreSQL's text format. */
  add (values) {
    if (this.excess !== undefined) return
    let row = '{'
    for (let index = 0; index < values.length; index++) {
      const { key, toJson } = this.columns[index]
      const value = values[index]
      if (index > 0) row += ','
      row += key + (value === null ? 'null' : toJson(value))
    }
    row += '}'
    const { maxRows, maxBytes } = this.#limits
    this.#bytes += Buffer.byteLength(row) + 1
    this.#rows.push(row)
    if (this.#rows.length > maxRows) this.#exceed(`a result has up to ${maxRows} rows`)
    else if (this.#bytes > maxBytes) this.#exceed(`a result has up to ${maxBytes} bytes`)
  }

  #exceed (message) {
    this.excess = new GuestError('TOO_LARGE', message)
    this.#rows = []
    this.#onExcess()
  }

  toJson () {
    return `[${this.#rows.join(',')}]`
  }
}

module.exports = { Rows }
