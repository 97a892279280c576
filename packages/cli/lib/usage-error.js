'use strict'

/** What is wrong with how a command was used, its configuration file included. */
class UsageError extends Error {}

module.exports = { UsageError }
