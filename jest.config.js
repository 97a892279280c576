'use strict'

const { hasRedis } = require('./__test__/support/redis.js')

const needRedis = ['<rootDir>/__test__/redis']

if (!hasRedis()) {
  console.log('There is no redis-server here: the tests of stores on Redis are left out.')
}

module.exports = {
  testEnvironment: 'node',
  testTimeout: 30_000,
  testMatch: ['<rootDir>/__test__/**/*.test.js'],
  testPathIgnorePatterns: ['/node_modules/', ...(hasRedis() ? [] : needRedis)],
  modulePathIgnorePatterns: ['<rootDir>/target/']
}
