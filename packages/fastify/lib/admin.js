'use strict'

// Routes for who operates the app: to reload plugins, and to see and change what is in its store.

const { createHash, timingSafeEqual } = require('node:crypto')
const createError = require('@fastify/error')
const { listKeys } = require('extism-host/internal')
const { takeAnyBody } = require('./routes.js')

const Unauthorized = createError('UNAUTHORIZED', 'the request is not authorized', 401)
const PluginNotFound = createError('PLUGIN_NOT_FOUND', 'there is no such plugin', 404)
const KeyNotFound = createError('KEY_NOT_FOUND', 'there is no such key', 404)

// What a store or a reload may refuse: who operates the app is told why.
const STORE_STATUS = { INVALID_ARGUMENT: 400, VALUE_TOO_LARGE: 413, STORE_FULL: 507, CLOSED: 503, STORE_UNAVAILABLE: 503, ACCESS_DENIED: 502 }
const RELOAD_STATUS = { UNSUPPORTED: 409, CLOSED: 503 }
const RELOAD_FAILED = 422

const digest = (text) => createHash('sha256').update(text).digest()

/** A hook that lets in who has the token. Digests have one length, and take one time to compare. */
function requireToken (token) {
  const expected = digest(token)
  return async function checkToken (request) {
    const given = /^Bearer +(.*)$/i.exec(request.headers.authorization ?? '')?.[1] ?? ''
    if (timingSafeEqual(digest(given), expected)) return
    throw Object.assign(new Unauthorized(), { headers: { 'www-authenticate': 'Bearer' } })
  }
}

/** Runs what may fail; the error keeps its code and its message, and has a status. */
async function answering (statuses, fallback, run) {
  try {
    return await run()
  } catch (cause) {
    const { code, message } = cause
    throw Object.assign(new Error(message, { cause }), { code, statusCode: statuses[code] ?? fallback })
  }
}

function addReload (scope, plugins, options) {
  scope.post('/plugins/:name/reload', options, async (request, reply) => {
    const { name } = request.params
    if (!plugins.names.includes(name)) throw new PluginNotFound()
    await answering(RELOAD_STATUS, RELOAD_FAILED, () => plugins.reload(name))
    request.log.info(`plugin "${name}" has been reloaded`)
    return reply.code(204).send()
  })
}

function addStore (scope, store, options) {
  const ask = (run) => answering(STORE_STATUS, 500, run)

  scope.get('/store', options, (request) => {
    const { prefix = '', cursor } = request.query
    return ask(() => listKeys(store, prefix, cursor))
  })

  scope.get('/store/*', options, async (request, reply) => {
    const value = await ask(() => store.get(request.params['*']))
    if (value === undefined) throw new KeyNotFound()
    // Guests may have written it: no browser is to make a page of it.
    reply.type('application/octet-stream').header('x-content-type-options', 'nosniff')
    return value
  })

  scope.put('/store/*', options, async (request, reply) => {
    const { ttlMs } = request.query
    const lifetime = ttlMs === undefined ? undefined : { ttlMs: Number(ttlMs) }
    await ask(() => store.set(request.params['*'], request.body ?? '', lifetime))
    return reply.code(204).send()
  })

  scope.delete('/store/*', options, async (request, reply) => {
    if (!await ask(() => store.delete(request.params['*']))) throw new KeyNotFound()
    return reply.code(204).send()
  })
}

function addAdmin (scope, { token, prefix }, plugins, store) {
  scope.register(async (admin) => {
    takeAnyBody(admin)
    admin.addHook('onRequest', requireToken(token))
    admin.addHook('onSend', async (request, reply) => { reply.header('cache-control', 'no-store') })
    const options = { schema: { hide: true } }
    addReload(admin, plugins, options)
    if (store !== undefined) addStore(admin, store, options)
  }, { prefix })
}

module.exports = { addAdmin }
