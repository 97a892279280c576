'use strict'

// The destination of the log of `serve`: lines for people on a terminal, if pino-pretty is installed; JSON otherwise.

const { LogOutput } = require('extism-host/internal')

function loadPretty () {
  try {
    return require('pino-pretty')
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error
    return undefined
  }
}

function logStream () {
  const output = new LogOutput()
  const pretty = process.stdout.isTTY ? loadPretty() : undefined
  if (pretty === undefined) return output
  const format = pretty.prettyFactory({ colorize: pretty.isColorSupported, ignore: 'pid,hostname', translateTime: 'SYS:HH:MM:ss.l' })
  return { write: (line) => output.write(format(line)) }
}

module.exports = { logStream }
