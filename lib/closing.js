'use strict'

/**
 * The signals by which the processor says that a plugin has done what WebAssembly forbids. The native part makes an
 * error of them; who handles one of them in JavaScript takes it away, and the next trap of a plugin ends the process.
 */
const TRAP_SIGNALS = ['SIGILL', 'SIGTRAP', 'SIGFPE', 'SIGBUS', 'SIGSEGV']

/** How often connections are looked at while a server is closed, in milliseconds. */
const PAUSE = 50

/**
 * Has a Fastify app that is being closed let go of connections as soon as they have no request left, and not when
 * their clients let go of them: Node looks for such connections only once, when it begins to close.
 */
function closeConnectionsInTime (app) {
  app.addHook('preClose', (done) => {
    const timer = setInterval(() => app.server.closeIdleConnections(), PAUSE).unref()
    app.server.once('close', () => clearInterval(timer))
    done()
  })
}

module.exports = { TRAP_SIGNALS, closeConnectionsInTime }
