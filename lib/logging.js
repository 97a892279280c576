'use strict'

// Loggers and levels.

const { describe, invalidArgument } = require('./errors.js')

/** The levels of messages, each at the place of its number in Extism. */
const LEVELS = ['trace', 'debug', 'info', 'warn', 'error']
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

/** A logger like the console, or one of pino's. It needs only the methods of levels that are wanted. */
function asLogger (logger = console, level = undefined) {
  if (typeof logger !== 'object' && typeof logger !== 'function') {
    throw invalidArgument(`logger must be an object with methods ${LEVELS.join(', ')}, not ${describe(logger)}`)
  }
  const missing = level === undefined ? undefined : LEVELS.slice(level).find((name) => typeof logger?.[name] !== 'function')
  if (logger === null || missing !== undefined) {
    throw invalidArgument(`logger must have a method ${missing ?? LEVELS[0]}`)
  }
  return logger
}

/** Passes on a message. What a logger throws is the business of nobody who could handle it here. */
function log (logger, level, message) {
  try {
    logger[LEVELS[level]](message)
  } catch (error) {
    queueMicrotask(() => { throw error })
  }
}

module.exports = { LEVELS, SILENT, asLevel, asLogger, log }
