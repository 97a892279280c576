'use strict'

/** An error in the command line or the configuration file. */
class UsageError extends Error {}

module.exports = { UsageError }
