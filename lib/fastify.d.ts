import extismHost = require('@extism-host/fastify')

export = extismHost
