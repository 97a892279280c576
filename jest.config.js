'use strict'

const { hasChromium } = require('./__test__/support/chromium.js')
const { hasMosquitto } = require('./__test__/support/mosquitto.js')
const { hasNats } = require('./__test__/support/nats.js')
const { hasPostgres } = require('./__test__/support/postgres.js')
const { hasRedis } = require('./__test__/support/redis.js')

// What must be installed for which test files. docs.test.js decides for each page.
const leftOut = [
  [hasRedis, 'redis-server', 'redis|connect-slingshot|fastify-connect'],
  [hasNats, 'nats-server', 'connect-(nats|jetstream|languages|slingshot)|fastify-(connect|triggers)|examples-orders'],
  [hasPostgres, 'PostgreSQL server', 'connect-(postgres|languages)|fastify-connect|examples-orders'],
  [hasMosquitto, 'mosquitto', 'connect-mqtt|fastify-(connect|triggers)'],
  [hasChromium, 'chromium', 'cli-dev|fastify-docs|new-plugin']
].flatMap(([isHere, program, files]) => {
  if (isHere()) return []
  console.log(`${program} is not installed: skipping the tests ${files}.`)
  return [`<rootDir>/__test__/(${files})`]
})

module.exports = {
  testEnvironment: 'node',
  testTimeout: 30_000,
  testMatch: ['<rootDir>/__test__/**/*.test.js'],
  testPathIgnorePatterns: ['/node_modules/', ...leftOut],
  modulePathIgnorePatterns: ['<rootDir>/target/']
}
