'use strict'

const { hasNats } = require('./__test__/support/nats.js')
const { hasPostgres } = require('./__test__/support/postgres.js')
const { hasRedis } = require('./__test__/support/redis.js')

const leftOut = [
  [hasRedis, 'redis-server', 'stores on Redis', '<rootDir>/__test__/redis'],
  [hasNats, 'nats-server', 'connections to NATS', '<rootDir>/__test__/connect-nats'],
  [hasPostgres, 'PostgreSQL server', 'connections to PostgreSQL', '<rootDir>/__test__/connect-postgres']
].flatMap(([isHere, server, tests, path]) => {
  if (isHere()) return []
  console.log(`${server} is not installed: skipping the tests of ${tests}.`)
  return [path]
})

module.exports = {
  testEnvironment: 'node',
  testTimeout: 30_000,
  testMatch: ['<rootDir>/__test__/**/*.test.js'],
  testPathIgnorePatterns: ['/node_modules/', ...leftOut],
  modulePathIgnorePatterns: ['<rootDir>/target/']
}
