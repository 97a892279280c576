'use strict'

// SQL values as JSON, in both directions. Nothing is rounded: if a JSON number could not hold a value, it is a string.

const { GuestError } = require('./protocol.js')

const invalid = (message) => new GuestError('INVALID_REQUEST', message)

/** The protocol counts parameters in 16 bits. */
const MAX_PARAMS = 65_535

/** The parameters of a request, as `pg` takes them. */
function parametersOf (params = []) {
  if (!Array.isArray(params) || params.length > MAX_PARAMS) throw invalid(`params must be an array of up to ${MAX_PARAMS} values`)
  return params.map(parameterOf)
}

function parameterOf (value) {
  if (typeof value === 'number') {
    if (Number.isInteger(value) ? !Number.isSafeInteger(value) : !Number.isFinite(value)) {
      throw invalid('a parameter is too large for a JSON number; pass it as a string')
    }
    return value
  }
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(parameterOf)
  const keys = Object.keys(value)
  if (keys.length !== 1 || (keys[0] !== '$bytes' && keys[0] !== '$json')) {
    throw invalid('an object as a parameter must be {"$bytes": base64} or {"$json": value}')
  }
  return keys[0] === '$bytes' ? bytesOf(value.$bytes) : JSON.stringify(value.$json)
}

function bytesOf (base64) {
  if (typeof base64 !== 'string' || base64.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(base64)) {
    throw invalid('$bytes must be a string in base64, with padding')
  }
  return Buffer.from(base64, 'base64')
}

const verbatim = (text) => text
const quoted = (text) => JSON.stringify(text)
const boolean = (text) => text === 't' ? 'true' : 'false'

/** `NaN` and the infinities are strings: JSON has no numbers for them. */
const float = (text) => /^-?\d/.test(text) ? text : quoted(text)

/** As RFC 3339 has it; what that cannot hold (infinity, years before Christ) is left unchanged. */
const timestamp = (text) => quoted(text.replace(/^(\d{4,}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)(?:([+-]\d\d)(:\d\d)?)?$/,
  (_, date, time, hours, minutes) => `${date}T${time}${hours === undefined ? '' : `${hours}${minutes ?? ':00'}`}`))

/** The OIDs of types whose values are not plain strings, and those of their arrays. */
const TYPES = [
  { oid: 16, array: 1000, toJson: boolean }, // bool
  { oid: 21, array: 1005, toJson: verbatim }, // int2
  { oid: 23, array: 1007, toJson: verbatim }, // int4
  { oid: 26, array: 1028, toJson: verbatim }, // oid
  { oid: 700, array: 1021, toJson: float }, // float4
  { oid: 701, array: 1022, toJson: float }, // float8
  { oid: 114, array: 199, toJson: verbatim }, // json
  { oid: 3802, array: 3807, toJson: verbatim }, // jsonb
  { oid: 1114, array: 1115, toJson: timestamp }, // timestamp
  { oid: 1184, array: 1185, toJson: timestamp }, // timestamptz
  { oid: 20, array: 1016, toJson: quoted }, // int8
  { oid: 1700, array: 1231, toJson: quoted }, // numeric
  { oid: 25, array: 1009, toJson: quoted }, // text
  { oid: 1043, array: 1015, toJson: quoted }, // varchar
  { oid: 1042, array: 1014, toJson: quoted }, // char(n)
  { oid: 2950, array: 2951, toJson: quoted }, // uuid
  { oid: 1082, array: 1182, toJson: quoted } // date
]

/** Parsers for `pg` that give JSON, as text. `types` are those of `pg`. */
function jsonTypes (types) {
  const parseBytes = types.getTypeParser(17, 'text')
  const bytea = (text) => quoted(parseBytes(text).toString('base64'))
  const parsers = new Map()
  for (const { oid, array, toJson } of [...TYPES, { oid: 17, array: 1001, toJson: bytea }]) {
    parsers.set(oid, toJson)
    parsers.set(array, (text) => arrayOf(types.arrayParser.create(text, toJson).parse()))
  }
  return { getTypeParser: (oid) => parsers.get(oid) ?? quoted }
}

const arrayOf = (items) => `[${items.map((item) => Array.isArray(item) ? arrayOf(item) : item ?? 'null').join(',')}]`

module.exports = { jsonTypes, parametersOf }
