'use strict'

// Which topics of MQTT a guest may use.

const { describe, invalidArgument } = require('extism-host/internal')

/** The protocol's limit. */
const MAX_TOPIC_BYTES = 65_535

/** Characters for which a broker may close the connection. */
const FORBIDDEN = /[\p{Cc}\p{Cs}\p{Noncharacter_Code_Point}]/u

/** Whether the protocol can carry this. */
const isText = (text) => typeof text === 'string' && !FORBIDDEN.test(text)

const isName = (text) => isText(text) && text !== '' && Buffer.byteLength(text) <= MAX_TOPIC_BYTES

const isTopic = (topic) => isName(topic) && !/[+#]/.test(topic)

const isFilter = (filter) => isName(filter) && filter.split('/').every((level, index, { length }) =>
  level === '+' || (level === '#' && index === length - 1) || !/[+#]/.test(level))

/**
 * A function that tells whether a topic matches one of the filters. As the protocol says, a wildcard in the first place does
 * not match the broker's own topics (`$SYS`), and `a/#` matches `a`, too.
 */
function topicMatcher (filters, name) {
  if (filters === undefined) return () => false
  if (!Array.isArray(filters) || !filters.every(isFilter)) {
    throw invalidArgument(`${name} must be an array of topics such as 'sensors/+', not ${Array.isArray(filters) ? JSON.stringify(filters) : describe(filters)}`)
  }
  const split = filters.map((filter) => filter.split('/'))
  return (topic) => {
    const levels = topic.split('/')
    return split.some((filter) => matches(filter, levels))
  }
}

function matches (filter, levels) {
  if (levels[0].startsWith('$') && filter[0] !== levels[0]) return false
  const isOpen = filter.at(-1) === '#'
  if (isOpen ? levels.length < filter.length - 1 : levels.length !== filter.length) return false
  return filter.every((level, index) => level === '+' || level === '#' || level === levels[index])
}

module.exports = { isFilter, isText, isTopic, topicMatcher }
