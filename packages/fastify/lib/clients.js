'use strict'

// The clients of brokers and databases: how the app opens, checks and closes each.

const { codedError } = require('extism-host/internal')
const { inTime } = require('./in-time.js')

/** The time limit of a connection at the start. Fastify gives a plugin 10 s. */
const CONNECT_MS = 5_000

/** The time to send what guests have published last. */
const FLUSH_MS = 1_000

const ignore = () => {}

const unavailable = () => codedError('UNAVAILABLE', 'it did not respond in time')

const CLIENTS = {
  nats: {
    package: '@nats-io/transport-node',
    load: () => require('@nats-io/transport-node'),
    isClient: (value) => typeof value?.subscribe === 'function' && typeof value.flush === 'function',
    open: ({ connect }, url, options) => connect({ servers: url.split(','), timeout: CONNECT_MS, maxReconnectAttempts: -1, ...options }),
    check: (connection) => connection.flush(),
    async close (connection) {
      // Without this, messages of guests would stay in the client's buffer. Without the server, it would wait forever.
      await inTime(connection.flush(), FLUSH_MS, unavailable).catch(ignore)
      await connection.close()
    }
  },
  mqtt: {
    package: 'mqtt',
    load: () => require('mqtt'),
    isClient: () => false,
    async open ({ connectAsync }, url, options, onError) {
      const client = await connectAsync(url, { ...mqttOptions(options), reconnectOnConnackError: true }, false)
      return client.on('error', onError)
    },
    async check (client) {
      if (!client.connected) throw unavailable()
    },
    async close (client) {
      client.options.reconnectPeriod = 0
      // If the broker is lost meanwhile, the client waits forever for acknowledgements.
      await inTime(client.endAsync(!client.connected), FLUSH_MS, unavailable).catch(() => client.stream.destroy())
    }
  },
  postgres: {
    package: 'pg',
    load: () => require('pg'),
    isClient: (value) => typeof value?.connect === 'function' && typeof value.options?.max === 'number',
    async open ({ Pool }, url, options, onError) {
      const pool = new Pool({ connectionString: url, connectionTimeoutMillis: CONNECT_MS, ...options })
      // Without a listener, the loss of an idle connection ends the process.
      pool.on('error', onError)
      try {
        await pool.query('SELECT 1')
      } catch (error) {
        await pool.end()
        throw error
      }
      return pool
    },
    check: (pool) => pool.query('SELECT 1'),
    close: (pool) => pool.end()
  },
  redis: {
    package: 'redis',
    load: () => require('redis'),
    isClient: (value) => typeof value?.scanIterator === 'function',
    async open ({ createClient }, url, options, onError) {
      const client = createClient({ url, ...options })
      try {
        // Without this, the client would try forever.
        await new Promise((resolve, reject) => {
          client.once('error', reject)
          client.connect().then(resolve, reject)
        })
      } catch (error) {
        if (client.isOpen) client.destroy()
        throw error
      }
      return client.on('error', onError)
    },
    check: (client) => client.ping(),
    close: (client) => inTime(client.close(), FLUSH_MS, unavailable).catch(() => client.destroy())
  }
}

/** Options of a client of MQTT. Headers of messages need version 5. */
const mqttOptions = (options) => ({ connectTimeout: CONNECT_MS, protocolVersion: 5, ...options })

function load (kind, what) {
  // Fails with its own message if that package is missing.
  require('extism-host/connect')
  try {
    return CLIENTS[kind].load()
  } catch {
    const { package: name } = CLIENTS[kind]
    throw codedError('NOT_INSTALLED', `${what} needs the package ${name}: npm install ${name}`)
  }
}

module.exports = { CLIENTS, load, mqttOptions, unavailable }
