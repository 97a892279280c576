'use strict'

// Loggers and levels.

const binding = require('../binding.js')
const { describe, invalidArgument } = require('./errors.js')

/** The levels of messages, each at the index of its number in Extism. */
const LEVELS = binding.logLevels()
const SILENT = 'silent'

/** The number of a level; `undefined` for silence. */
function asLevel (level = SILENT) {
  if (level === SILENT) return undefined
  const number = LEVELS.indexOf(level)
  if (number < 0) {
    throw invalidArgument(`logLevel must be one of ${[...LEVELS, SILENT].join(', ')}, not ${typeof level === 'string' ? JSON.stringify(level) : describe(level)}`)
  }
  return number
}

/**
 * A logger like the console, or one of pino's. Messages of levels for which it has no method are not passed
 * on; it must have one for some level that is wanted.
 */
function asLogger (logger = console, level = undefined) {
  if ((typeof logger !== 'object' && typeof logger !== 'function') || logger === null) {
    throw invalidArgument(`logger must be an object with methods ${LEVELS.join(', ')}, not ${describe(logger)}`)
  }
  const wanted = level === undefined ? undefined : LEVELS.slice(level)
  if (wanted !== undefined && !wanted.some((name) => typeof logger[name] === 'function')) {
    throw invalidArgument(`logger must have methods for messages, such as ${wanted.at(-1)}`)
  }
  return logger
}

/** Passes on a message. What a logger throws is the business of nobody who could handle it here. */
function log (logger, level, message) {
  try {
    logger[LEVELS[level]]?.(message)
  } catch (error) {
    throwLater(error)
  }
}

/** Throws what nobody who could handle it would catch here: it becomes an uncaught exception. */
function throwLater (error) {
  queueMicrotask(() => { throw error })
}

module.exports = { LEVELS, SILENT, asLevel, asLogger, log, throwLater }
