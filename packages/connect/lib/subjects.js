'use strict'

// Which subjects of NATS a guest may use.

const { describe, invalidArgument } = require('extism-host/internal')

/** A token of a subject or of a pattern. */
const TOKEN = /^[^\s.*>\0]+$/

/** Longer subjects cost the server more than they are worth. */
const MAX_SUBJECT = 1024

const isSubject = (subject) => typeof subject === 'string' && subject.length <= MAX_SUBJECT &&
  subject.split('.').every((token) => TOKEN.test(token))

const isPattern = (pattern) => typeof pattern === 'string' && pattern.split('.').every((token, index, { length }) =>
  token === '*' || (token === '>' && index === length - 1) || TOKEN.test(token))

/**
 * A function that tells whether a subject matches one of the patterns. A wildcard in the first place does not match
 * the server's own subjects (`$SYS`, `$JS`) nor inboxes (`_INBOX`): a guest could administer streams with the former, and
 * answer the requests of others with the latter.
 */
function subjectMatcher (patterns, name) {
  if (patterns === undefined) return () => false
  if (!Array.isArray(patterns) || !patterns.every(isPattern)) {
    throw invalidArgument(`${name} must be an array of subjects such as 'orders.*', not ${Array.isArray(patterns) ? JSON.stringify(patterns) : describe(patterns)}`)
  }
  const split = patterns.map((pattern) => pattern.split('.'))
  return (subject) => {
    const tokens = subject.split('.')
    return split.some((pattern) => matches(pattern, tokens))
  }
}

function matches (pattern, tokens) {
  if (/^[$_]/.test(tokens[0]) && pattern[0] !== tokens[0]) return false
  const isOpen = pattern.at(-1) === '>'
  if (isOpen ? tokens.length < pattern.length : tokens.length !== pattern.length) return false
  return pattern.every((token, index) => token === '*' || token === '>' || token === tokens[index])
}

module.exports = { isPattern, isSubject, subjectMatcher }
