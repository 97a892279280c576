'use strict'

// The configuration file of `extism-host serve`.

const { mkdtempSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { readConfig } = require('../packages/cli/lib/config.js')

let directory

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-config-'))
})

afterEach(() => rmSync(directory, { recursive: true }))

function read (text, environment = {}) {
  const file = join(directory, 'extism-host.yaml')
  writeFileSync(file, text)
  return readConfig(file, environment)
}

const PLUGINS = 'plugins:\n  greeter: { wasm: greeter.wasm }\n'

test('missing settings have defaults, and paths are relative to the file', () => {
  const { server, store, plugins, ...rest } = read(PLUGINS)
  expect(server).toMatchObject({ port: 7070, host: '127.0.0.1', tls: undefined })
  expect(store).toEqual({ url: 'memory:', startTimeoutMs: 30_000, options: {} })
  expect(plugins).toEqual({ greeter: { source: { wasm: [{ path: join(directory, 'greeter.wasm') }] } } })
  expect(rest).toEqual({})
})

test('all settings are passed on', () => {
  writeFileSync(join(directory, 'ca.pem'), 'a certificate')
  const { server, store, plugins, routes, health, metrics, admin } = read(`
server: { port: 0, logLevel: warn }
store: { url: 'rediss://host', ca: ca.pem, timeoutMs: 100, startTimeoutMs: 0 }
plugins:
  greeter:
    wasm: https://example.com/greeter.wasm
    hash: abc
    wasi: true
    instances: 2
    maxCalls: 1000
    maxAgeMs: 60000
    openTimeoutMs: 5000
    functions: host.mjs
    allowHttpResponseHeaders: true
    allowedPaths: [{ host: data, guest: /data, readOnly: true }]
    store: { prefix: 'g:', access: write }
    smoke: { function: greet, input: Jane }
routes: [{ url: /greet, plugin: greeter, function: greet, schema: { body: { type: object } }, errors: { PLUGIN_ERROR: 422 } }]
health: true
metrics: true
admin: { token: '\${TOKEN}' }
`, { TOKEN: 'a token that nobody can guess' })
  expect(server).toMatchObject({ port: 0, logLevel: 'warn', bodyLimit: 1_048_576 })
  expect(store).toEqual({ url: 'rediss://host', startTimeoutMs: 0, options: { ca: Buffer.from('a certificate'), timeoutMs: 100 } })
  expect(plugins.greeter).toEqual({
    source: { wasm: [{ url: 'https://example.com/greeter.wasm', hash: 'abc' }] },
    useWasi: true,
    instances: 2,
    maxCalls: 1_000,
    maxAgeMs: 60_000,
    openTimeoutMs: 5_000,
    functions: join(directory, 'host.mjs'),
    allowHttpResponseHeaders: true,
    allowedPaths: [{ host: join(directory, 'data'), guest: '/data', readOnly: true }],
    permissions: { prefix: 'g:', access: 'write' },
    smoke: { function: 'greet', input: 'Jane' }
  })
  expect({ routes, health, metrics, admin }).toEqual({
    routes: [{ url: '/greet', plugin: 'greeter', function: 'greet', schema: { body: { type: 'object' } }, errors: { PLUGIN_ERROR: 422 } }], health: true, metrics: true, admin: { token: 'a token that nobody can guess' }
  })
})

test.each([
  ['a key that does not exist, with what may have been meant', `${PLUGINS}server:\n  prot: 80\n`, /yaml:4: server: there is no "prot"; did you mean "port"\?$/],
  ['one that is like no other, with those that there are', `${PLUGINS}xyzzy: 1\n`, /yaml:3: there is no "xyzzy"; there are server, store, plugins/],
  ['one of a plugin', 'plugins:\n  a:\n    wasm: a.wasm\n    instnaces: 2\n', /yaml:4: plugins.a: there is no "instnaces"; did you mean "instances"\?$/],
  ['a value of the wrong type', `${PLUGINS}server: { port: '80' }\n`, /yaml:3: server.port: it must be integer$/],
  ['a value that is too large', `${PLUGINS}server: { port: 65536 }\n`, /server.port: it must be <= 65535$/],
  ['an unknown word', `${PLUGINS}server: { logLevel: loud }\n`, /server.logLevel: it must be one of trace, debug/],
  ['something that is missing', 'plugins: { a: { wasi: true } }\n', /yaml:1: plugins.a: "wasm" is missing$/],
  ['no plugins', 'server: { port: 80 }\n', /"plugins" is missing$/],
  ['an empty file', '', /"plugins" is missing$/],
  ['invalid YAML', 'plugins: { a: {\n', /yaml:\d+: /],
  ['a key that is there twice', `${PLUGINS}health: true\nhealth: false\n`, /yaml:4: .*unique/],
  ['an alias that stands for itself many times over', `a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n${
    ['ab', 'bc', 'cd', 'de'].map(([from, to]) => `${to}: &${to} [${Array(9).fill(`*${from}`)}]`).join('\n')}\n`, /^[^\n]*yaml: Excessive alias count/],
  ['an alias of nothing', `${PLUGINS}health: *nothing\n`, /yaml:?\d*: Unresolved alias/],
  ['an environment variable that every object inherits', `${PLUGINS}admin: { token: '\${constructor}\${toString}' }\n`, /yaml:3: the environment variable constructor is not set$/],
  ['an environment variable that is not set', `${PLUGINS}admin:\n  token: '\${NOBODY_SETS_IT}'\n`, /yaml:4: the environment variable NOBODY_SETS_IT is not set$/]
])('%s is refused, with its line', (_, text, message) => {
  expect(() => read(text)).toThrow(message)
})

test('a missing file is rejected', () => {
  expect(() => readConfig(join(directory, 'nowhere.yaml'))).toThrow(/cannot read the configuration from .*nowhere.yaml: ENOENT/)
  expect(() => read(`${PLUGINS}server: { tls: { cert: c.pem, key: k.pem } }`)).toThrow(/cannot read server.tls.cert from .*c.pem: ENOENT/)
  expect(() => read(`${PLUGINS}store: { url: 'rediss://h', ca: c.pem }`)).toThrow(/cannot read store.ca from/)
})
