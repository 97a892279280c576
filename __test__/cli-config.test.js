'use strict'

// The configuration file of `extism-host serve`.

const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const Ajv = require('ajv')
const { CACHE_KEYS, MEMORY_KEYS, OPTION_KEYS, STORE_KEYS, WASI_KEYS } = require('../lib/options.js')
const { readConfig } = require('../packages/cli/lib/config.js')
const schema = require('../packages/cli/lib/config.schema.json')
const { runNode } = require('./support/processes.js')

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
  const { server, store, plugins, routes, connections, triggers, health, metrics, admin } = read(`
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
    connect: { events: { publish: ['orders.*'] }, db: { connection: database, statements: any, readOnly: false } }
routes: [{ url: /greet, plugin: greeter, function: greet, schema: { body: { type: object } }, errors: { PLUGIN_ERROR: 422 } }]
connections:
  events: { nats: 'tls://host', token: secret, ca: ca.pem }
  sensors: { mqtt: 'mqtts://host', username: jane, password: secret, ca: ca.pem }
  database: { postgres: 'postgresql://host', max: 4, ca: ca.pem }
triggers: [{ nats: 'orders.*', plugin: greeter, function: greet }]
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
    smoke: { function: 'greet', input: 'Jane' },
    connect: { events: { publish: ['orders.*'] }, db: { connection: 'database', statements: 'any', readOnly: false } }
  })
  expect(connections).toEqual({
    events: { nats: 'tls://host', token: 'secret', tls: { ca: 'a certificate' } },
    sensors: { mqtt: 'mqtts://host', username: 'jane', password: 'secret', ca: 'a certificate' },
    database: { postgres: 'postgresql://host', max: 4, ssl: { ca: 'a certificate' } }
  })
  expect(triggers).toEqual([{ nats: 'orders.*', plugin: 'greeter', function: 'greet' }])
  expect({ routes, health, metrics, admin }).toEqual({
    routes: [{ url: '/greet', plugin: 'greeter', function: 'greet', schema: { body: { type: 'object' } }, errors: { PLUGIN_ERROR: 422 } }], health: true, metrics: true, admin: { token: 'a token that nobody can guess' }
  })
})

describe('the schema', () => {
  const plugin = schema.properties.plugins.additionalProperties.properties
  const namesOf = (keys) => [...new Set(Object.values(keys))].sort()
  const propertiesOf = ({ properties, anyOf }) => Object.keys(properties ?? anyOf.find(({ type }) => type === 'object').properties).sort()

  /** Options that a file does not have, and why. */
  const NOT_IN_A_FILE = {
    name: 'the key is the name',
    useWasi: 'it is `wasi`',
    logger: 'it is the log of the server',
    fetch: 'it is a function',
    signal: 'it is an object',
    runInWorker: 'it has no effect',
    sharedArrayBufferSize: 'it has no effect',
    nodeWorkerArgs: 'it has no effect'
  }

  test('has every option of createPlugin, and no other', () => {
    const ofServe = ['wasm', 'hash', 'smoke', 'connect']
    expect([...Object.keys(plugin).filter((name) => !ofServe.includes(name)), ...Object.keys(NOT_IN_A_FILE)].sort()).toEqual(namesOf(OPTION_KEYS))
  })

  test.each([['memory', MEMORY_KEYS], ['wasi', WASI_KEYS], ['compileCache', CACHE_KEYS]])('has every property of %s', (name, keys) => {
    expect(propertiesOf(plugin[name])).toEqual(namesOf(keys))
  })

  test('has every permission in the store', () => {
    expect(propertiesOf(plugin.store)).toEqual(namesOf(STORE_KEYS).filter((name) => name !== 'store'))
  })

  test('accepts the example of the docs', () => {
    const [, example] = /```yaml\n([^]*?)```/.exec(readFileSync(join(__dirname, '../docs/reference/command-line.md'), 'utf8'))
    expect(Object.keys(read(example).plugins)).toEqual(['greeter'])
  })

  test('is valid, and has an address that stays', () => {
    expect(new Ajv({ allowUnionTypes: true }).validateSchema(schema)).toBe(true)
    expect(schema.$id).toMatch(/^https:\/\/.*\/packages\/cli\/lib\/config\.schema\.json$/)
    expect(require('@extism-host/cli/config.schema.json')).toBe(schema)
  })
})

test('a plugin has several modules, WASI arguments and a cache of its own', () => {
  const { plugins } = read(`
plugins:
  greeter:
    wasm: [{ path: helper.wasm, name: helper }, { url: 'https://example.com/main.wasm', name: main, hash: abc }]
    wasi: { args: [greeter, --loud], env: { LANG: en } }
    enableWasiOutput: logger
    isolation: call
    snapshot: true
    interruption: epoch
    compileCache: { directory: cache, maxBytes: 1000000 }
  other: { wasm: other.wasm, wasi: false, compileCache: false, enableWasiOutput: true }
`)
  expect(plugins).toEqual({
    greeter: {
      source: { wasm: [{ path: join(directory, 'helper.wasm'), name: 'helper' }, { url: 'https://example.com/main.wasm', name: 'main', hash: 'abc' }] },
      useWasi: true,
      wasi: { args: ['greeter', '--loud'], env: { LANG: 'en' } },
      enableWasiOutput: 'logger',
      isolation: 'call',
      snapshot: true,
      interruption: 'epoch',
      compileCache: { directory: join(directory, 'cache'), maxBytes: 1_000_000 }
    },
    other: { source: { wasm: [{ path: join(directory, 'other.wasm') }] }, useWasi: false, compileCache: false, enableWasiOutput: true }
  })
})

test('uploads are kept beside the file, and the API page has a title', () => {
  const { admin, docs } = read(`${PLUGINS}admin: { token: 'a token that nobody can guess', uploads: { directory: uploads } }\ndocs: { info: { title: Greetings } }\n`)
  expect(admin).toEqual({ token: 'a token that nobody can guess', uploads: { directory: join(directory, 'uploads') } })
  expect(docs).toEqual({ info: { title: 'Greetings' } })
})

describe('config check', () => {
  const GREETER = join(__dirname, '../plugins/say-hello/say-hello.wasm')
  const check = async (text) => {
    const file = join(directory, 'extism-host.yaml')
    writeFileSync(file, text)
    const { code, output, errors } = await runNode(['bin/extism-host.js', 'config', 'check', file])
    return { code, output: output.replaceAll(directory, '.'), errors: errors.replaceAll(directory, '.') }
  }

  test('says what a valid configuration has', async () => {
    const text = `plugins: { greeter: { wasm: ${GREETER}, wasi: true, smoke: { function: say_hello } } }\nroutes: [{ url: /, plugin: greeter, function: say_hello }]\n`
    expect(await check(text)).toEqual({ code: 0, output: './extism-host.yaml is valid: 1 plugin, 1 route\n', errors: '' })
  })

  test.each([
    ['a key that does not exist', `plugins: { greeter: { wasm: ${GREETER}, wsai: true } }`, './extism-host.yaml:1: plugins.greeter: there is no "wsai"; did you mean "wasi"?'],
    ['a missing module', PLUGINS, 'plugins.greeter: cannot read ./greeter.wasm: ENOENT'],
    ['missing host functions', `plugins: { greeter: { wasm: ${GREETER}, functions: host.js } }`, 'plugins.greeter: cannot read ./host.js: ENOENT'],
    ['a route of an unknown plugin', `plugins: { greeter: { wasm: ${GREETER} } }\nroutes: [{ url: /, plugin: greter, function: say_hello }]`, 'routes.0: there is no plugin "greter"; there are greeter'],
    ['a route of an unknown function', `plugins: { greeter: { wasm: ${GREETER} } }\nroutes: [{ url: /, plugin: greeter, function: sayHello }]`, /^routes\.0: plugin "greeter" has no function "sayHello"; it has .*say_hello/],
    ['a trigger of an unknown plugin', `plugins: { greeter: { wasm: ${GREETER} } }\nconnections: { events: { nats: 'nats://host' } }\ntriggers: [{ nats: a, plugin: greter, function: say_hello }]`, 'triggers.0: there is no plugin "greter"; there are greeter'],
    ['a trigger of an unknown function', `plugins: { greeter: { wasm: ${GREETER} } }\nconnections: { events: { nats: 'nats://host' } }\ntriggers: [{ nats: a, plugin: greeter, function: sayHello }]`, /^triggers\.0: plugin "greeter" has no function "sayHello"/],
    ['a trigger without a connection to its broker', `plugins: { greeter: { wasm: ${GREETER} } }\nconnections: { events: { nats: 'nats://host' } }\ntriggers: [{ mqtt: a, clientId: a, plugin: greeter, function: say_hello }]`, 'triggers.0: there is no connection to mqtt; add one to "connections"'],
    ['a trigger of an unknown connection', `plugins: { greeter: { wasm: ${GREETER} } }\nconnections: { events: { nats: 'nats://host' } }\ntriggers: [{ nats: a, connection: evnts, plugin: greeter, function: say_hello }]`, 'triggers.0: "connection" must name a connection to nats: events'],
    ['a file that is not a module', `plugins: { greeter: { wasm: ${__filename} } }`, /^plugins\.greeter: .* is not a WebAssembly module: /],
    ['a short token', `plugins: { greeter: { wasm: ${GREETER} } }\nadmin: { token: short }`, /^.*yaml:2: admin\.token: it must NOT have fewer than 16 characters/],
    ['a hash of several modules', `plugins: { greeter: { wasm: [{ path: ${GREETER} }], hash: abc } }`, 'plugins.greeter: "hash" is that of one module; move it into the modules of "wasm"'],
    ['an unknown connection', `plugins: { greeter: { wasm: ${GREETER}, connect: { events: { connection: brokr } } } }\nconnections: { broker: { nats: host } }`, 'plugins.greeter.connect.events: there is no connection "brokr"; there are broker'],
    ['a permission that does not exist', `plugins: { greeter: { wasm: ${GREETER}, connect: { events: { publsh: [a] } } } }`, './extism-host.yaml:1: plugins.greeter.connect.events: there is no "publsh"; did you mean "publish"?'],
    ['a pool that leaves nothing to cancel statements', `plugins: { greeter: { wasm: ${GREETER} } }\nconnections: { shop: { postgres: host, max: 1 } }`, './extism-host.yaml:2: connections.shop.max: it must be >= 2'],
    ['a module without a place', 'plugins: { greeter: { wasm: [{ name: main }] } }', /^.*yaml:1: plugins\.greeter\.wasm\.0: /]
  ])('exits with 2, and says in one line what is wrong: %s', async (_, text, message) => {
    const { code, output, errors } = await check(text)
    expect({ code, output }).toEqual({ code: 2, output: '' })
    const [line, ...more] = errors.split('\n')
    expect(more).toEqual([''])
    const said = line.slice('extism-host: '.length)
    if (typeof message === 'string') expect(said).toBe(message)
    else expect(said).toMatch(message)
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
