'use strict'

// Routes for operators: list, reload and replace plugins, and read and change the store.

const { createHash, timingSafeEqual } = require('node:crypto')
const createError = require('@fastify/error')
const { listKeys } = require('extism-host/internal')
const { acceptAnyBody } = require('./routes.js')

const Unauthorized = createError('UNAUTHORIZED', 'the request is not authorized', 401)
const PluginNotFound = createError('PLUGIN_NOT_FOUND', 'there is no such plugin', 404)
const UploadsOff = createError('UNSUPPORTED', 'this server takes no uploads; set admin.uploads.directory', 409)
const KeyNotFound = createError('KEY_NOT_FOUND', 'there is no such key', 404)

// The HTTP status of errors of the store and of reloads. Operators get the error's message.
const STORE_STATUS = { INVALID_ARGUMENT: 400, VALUE_TOO_LARGE: 413, STORE_FULL: 507, CLOSED: 503, STORE_UNAVAILABLE: 503, ACCESS_DENIED: 502 }
const RELOAD_STATUS = { UNSUPPORTED: 409, CLOSED: 503, UPLOAD_NOT_KEPT: 507 }
const RELOAD_FAILED = 422

const digest = (text) => createHash('sha256').update(text).digest()

/** Returns a hook that rejects requests without the token. Digests have equal lengths and compare in constant time. */
function requireToken (token) {
  const expected = digest(token)
  return async function checkToken (request) {
    const given = /^Bearer +(.*)$/i.exec(request.headers.authorization ?? '')?.[1] ?? ''
    if (timingSafeEqual(digest(given), expected)) return
    throw Object.assign(new Unauthorized(), { headers: { 'www-authenticate': 'Bearer' } })
  }
}

/** Runs `work`. If it fails, the error gets an HTTP status, and keeps its code and message. */
async function withStatus (statuses, fallback, work) {
  try {
    return await work()
  } catch (cause) {
    const { code, message } = cause
    throw Object.assign(new Error(message, { cause }), { code, statusCode: statuses[code] ?? fallback })
  }
}

function addPlugins (scope, plugins, uploads, options) {
  scope.get('/plugins', options, async () => ({ plugins: plugins.names.map((name) => plugins.plugin(name).describe()) }))

  scope.post('/plugins/:name/reload', options, async (request, reply) => {
    const { name } = request.params
    if (!plugins.names.includes(name)) throw new PluginNotFound()
    await withStatus(RELOAD_STATUS, RELOAD_FAILED, () => plugins.reload(name))
    request.log.info(`plugin "${name}" has been reloaded`)
    return reply.code(204).send()
  })

  scope.post('/plugins/:name', { ...options, bodyLimit: uploads?.maxBytes }, async (request) => {
    const { name } = request.params
    if (uploads === undefined) throw new UploadsOff()
    if (!plugins.names.includes(name)) throw new PluginNotFound()
    await withStatus(RELOAD_STATUS, RELOAD_FAILED, () => plugins.upload(name, request.body ?? Buffer.alloc(0)))
    const described = plugins.plugin(name).describe()
    request.log.info({ plugin: name, ...described.upload }, `plugin "${name}" has been replaced by an upload`)
    return described
  })
}

function addStore (scope, store, options) {
  const run = (work) => withStatus(STORE_STATUS, 500, work)

  scope.get('/store', options, (request) => {
    const { prefix = '', cursor } = request.query
    return run(() => listKeys(store, prefix, cursor))
  })

  scope.get('/store/*', options, async (request, reply) => {
    const value = await run(() => store.get(request.params['*']))
    if (value === undefined) throw new KeyNotFound()
    // Guests may have written the value, so a browser must not render it as a page.
    reply.type('application/octet-stream').header('x-content-type-options', 'nosniff')
    return value
  })

  scope.put('/store/*', options, async (request, reply) => {
    const { ttlMs } = request.query
    const lifetime = ttlMs === undefined ? undefined : { ttlMs: Number(ttlMs) }
    await run(() => store.set(request.params['*'], request.body ?? '', lifetime))
    return reply.code(204).send()
  })

  scope.delete('/store/*', options, async (request, reply) => {
    if (!await run(() => store.delete(request.params['*']))) throw new KeyNotFound()
    return reply.code(204).send()
  })
}

function addAdmin (scope, { token, prefix, uploads }, plugins, store) {
  scope.register(async (admin) => {
    acceptAnyBody(admin)
    admin.addHook('onRequest', requireToken(token))
    admin.addHook('onSend', async (request, reply) => { reply.header('cache-control', 'no-store') })
    const options = { schema: { hide: true } }
    addPlugins(admin, plugins, uploads, options)
    if (store !== undefined) addStore(admin, store, options)
  }, { prefix })
}

module.exports = { addAdmin }
