'use strict'

// Loggers and levels.

const binding = require('../binding.js')
const { describe, invalidArgument } = require('./errors.js')

/** The levels of messages; the index is the level's number in Extism. */
const LEVELS = binding.logLevels()
const SILENT = 'silent'

/** Returns the number of a level; `undefined` for 'silent'. */
function asLevel (level = SILENT) {
  if (level === SILENT) return undefined
  const number = LEVELS.indexOf(level)
  if (number < 0) {
    throw invalidArgument(`logLevel must be one of ${[...LEVELS, SILENT].join(', ')}, not ${typeof level === 'string' ? JSON.stringify(level) : describe(level)}`)
  }
  return number
}

/**
 * Checks a logger, such as the console or one of pino's. Messages of a level without a method are dropped; it must
 * have a method for at least one level from `level` on.
 */
function asLogger (logger = console, level = undefined) {
  if ((typeof logger !== 'object' && typeof logger !== 'function') || logger === null) {
    throw invalidArgument(`logger must be an object with methods ${LEVELS.join(', ')}, not ${describe(logger)}`)
  }
  const wanted = level === undefined ? undefined : LEVELS.slice(level)
  if (wanted !== undefined && !wanted.some((name) => typeof logger[name] === 'function')) {
    throw invalidArgument(`logger must have a method for at least one of the levels ${wanted.join(', ')}`)
  }
  return logger
}

/** Passes a message to a logger. If the logger throws, no caller here could handle it. */
function log (logger, level, message) {
  try {
    logger[LEVELS[level]]?.(message)
  } catch (error) {
    throwLater(error)
  }
}

/** Throws an error that no caller could handle from a microtask, as an uncaught exception. */
function throwLater (error) {
  queueMicrotask(() => { throw error })
}

module.exports = { LEVELS, SILENT, asLevel, asLogger, log, throwLater }
