'use strict'

const { setTimeout: sleep } = require('node:timers/promises')
const { Pool } = require('pg')
const { connect, postgres } = require('../lib/connect.js')
const { guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { startPostgres } = require('./support/postgres.js')

jest.setTimeout(60_000)

const open = pluginsOfEachTest()

let wasm
let server
let pool
let admin
beforeAll(async () => {
  wasm = await guest('connected')
  server = await startPostgres()
})
afterAll(() => server.stop())

beforeEach(async () => {
  admin = new Pool({ connectionString: server.url })
  admin.on('error', () => {})
  await admin.query(`
    DROP TABLE IF EXISTS users;
    CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL);
    INSERT INTO users VALUES (1, 'Jane'), (2, 'John')`)
  pool = new Pool({ connectionString: server.url, max: 4, application_name: 'guests' })
  pool.on('error', () => {})
})
afterEach(() => Promise.all([pool.end(), admin.end()]))

/** A plugin with a connection `db`; its calls resolve to the reply. */
async function connected (options, { onError, ...pluginOptions } = {}) {
  const plugin = await open(wasm, { ...pluginOptions, functions: connect({ db: postgres(pool, options) }, { onError }) })
  return async (name, request, callOptions) =>
    (await plugin.call(name, JSON.stringify({ connection: 'db', ...request }), null, callOptions)).json()
}

/** A function that queries free SQL with parameters. */
async function free (options) {
  const call = await connected({ statements: 'any', ...options })
  return (sql, params) => call('query', { sql, params })
}

/** The connections of guests on which a statement runs or a transaction is open. */
async function busy () {
  const { rows } = await admin.query("SELECT pid, query FROM pg_stat_activity WHERE application_name = 'guests' AND state <> 'idle'")
  return rows
}

/** Resolves once as many connections are busy. */
async function untilBusy (count) {
  while ((await busy()).length !== count) await sleep(10)
}

const withCode = (code) => ({ error: expect.objectContaining({ code }) })

describe('a named statement', () => {
  const statements = {
    userById: 'SELECT id, name FROM users WHERE id = $1',
    allUsers: 'SELECT name FROM users ORDER BY id',
    addUser: 'INSERT INTO users VALUES ($1, $2)',
    addUserReturning: 'INSERT INTO users VALUES ($1, $2) RETURNING name'
  }

  test('is run with parameters, and gives rows', async () => {
    const call = await connected({ statements })
    expect(await call('query', { statement: 'userById', params: [2] })).toEqual({ rows: [{ id: 2, name: 'John' }] })
    expect(await call('query', { statement: 'userById', params: [3] })).toEqual({ rows: [] })
    expect(await call('query', { statement: 'allUsers' })).toEqual({ rows: [{ name: 'Jane' }, { name: 'John' }] })
  })

  test('changes rows, and gives their number, if the host allows it', async () => {
    const call = await connected({ statements, readOnly: false })
    expect(await call('execute', { statement: 'addUser', params: [3, 'Ann'] })).toEqual({ rowCount: 1 })
    expect(await call('query', { statement: 'addUserReturning', params: [4, 'Bob'] })).toEqual({ rows: [{ name: 'Bob' }] })
    expect((await admin.query('SELECT count(*)::int FROM users')).rows).toEqual([{ count: 4 }])
  })

  test('may only read, by default', async () => {
    const call = await connected({ statements })
    expect(await call('execute', { statement: 'addUser', params: [3, 'Ann'] }))
      .toEqual({ error: { code: 'NOT_ALLOWED', message: 'this plugin may only read', sqlstate: '25006' } })
    expect((await admin.query('SELECT count(*)::int FROM users')).rows).toEqual([{ count: 2 }])
  })

  test('is prepared again when its connection has lost it, or a table has changed', async () => {
    const call = await connected({ statements: { ...statements, everything: 'SELECT * FROM users WHERE id = $1' }, readOnly: false })
    const query = () => call('query', { statement: 'everything', params: [1] })
    for (let i = 0; i < 2; i++) expect(await query()).toEqual({ rows: [{ id: 1, name: 'Jane' }] })
    await pool.query('DEALLOCATE ALL')
    expect(await query()).toEqual({ rows: [{ id: 1, name: 'Jane' }] })
    await pool.query('DISCARD ALL')
    expect(await call('execute', { statement: 'addUser', params: [3, 'Ann'] })).toEqual({ rowCount: 1 })
    await admin.query('ALTER TABLE users ADD COLUMN age int DEFAULT 7')
    expect(await query()).toEqual({ rows: [{ id: 1, name: 'Jane', age: 7 }] })
    await admin.query('ALTER TABLE users ALTER COLUMN name TYPE char(6)')
    expect(await query()).toEqual({ rows: [{ id: 1, name: 'Jane  ', age: 7 }] })
    expect(pool.totalCount).toBe(1)
  })

  test('leaves the host its own settings on the same connections, and its own prepared statements', async () => {
    const call = await connected({ statements, timeoutMs: 5_000 })
    const own = () => pool.query({ name: 'own', text: 'INSERT INTO users VALUES ($1, $2)', values: [pool.made++, 'x'] })
    pool.made = 10
    for (let i = 0; i < 3; i++) {
      await call('query', { statement: 'userById', params: [1] })
      await own()
      expect((await pool.query('SHOW statement_timeout')).rows).toEqual([{ statement_timeout: '0' }])
    }
    expect(pool.totalCount).toBe(1)
  })

  test('is a transaction of its own, and failing does not hurt the next', async () => {
    const call = await connected({ statements: { ...statements, both: 'WITH added AS (INSERT INTO users VALUES ($1, $2) RETURNING id) SELECT 1 / (id - 3) AS one FROM added' }, readOnly: false })
    for (let i = 0; i < 3; i++) {
      expect(await call('query', { statement: 'both', params: [3, 'Ann'] })).toEqual(withCode('INVALID_VALUE'))
      expect(await call('query', { statement: 'userById', params: [3] })).toEqual({ rows: [] })
      expect(await call('query', { statement: 'both', params: [4 + i, 'Bob'] })).toMatchObject({ rows: [{}] })
    }
    expect(await busy()).toEqual([])
  })

  test('cannot become read-write, even by the host\'s own SQL', async () => {
    const call = await connected({
      statements: {
        block: "DO $$ BEGIN SET TRANSACTION READ WRITE; INSERT INTO users VALUES (3, 'x'); END $$",
        setting: "SELECT set_config('transaction_read_only', 'off', false)",
        addUser: "INSERT INTO users VALUES (3, 'x')"
      }
    })
    for (const statement of ['block', 'setting', 'addUser']) await call('query', { statement })
    expect((await admin.query('SELECT count(*)::int FROM users')).rows).toEqual([{ count: 2 }])
  })

  test.each([
    [{ statement: 'other' }, 'NOT_ALLOWED'],
    [{ statement: '__proto__' }, 'NOT_ALLOWED'],
    [{ statement: 'constructor' }, 'NOT_ALLOWED'],
    [{}, 'NOT_ALLOWED'],
    [{ sql: 'SELECT 1' }, 'NOT_ALLOWED'],
    [{ statement: 'allUsers', sql: 'SELECT 1' }, 'NOT_ALLOWED'],
    [{ statement: 'userById', params: 1 }, 'INVALID_REQUEST'],
    [{ statement: 'userById', params: [2 ** 60] }, 'INVALID_REQUEST'],
    [{ statement: 'userById', params: [{ id: 1 }] }, 'INVALID_REQUEST'],
    [{ statement: 'userById', params: [{ $bytes: 'x' }] }, 'INVALID_REQUEST'],
    [{ statement: 'userById', params: new Array(65_536).fill(0) }, 'INVALID_REQUEST'],
    [{ statement: 'userById', params: ['x'] }, 'INVALID_VALUE'],
    [{ statement: 'userById', params: ["1'; DROP TABLE users; --"] }, 'INVALID_VALUE'],
    [{ statement: 'addUser', params: [1, 'Jane'] }, 'CONSTRAINT'],
    [{ statement: 'addUser', params: [5, null] }, 'CONSTRAINT'],
    [{ statement: 'userById', params: [] }, 'INVALID_REQUEST'],
    [{ statement: 'userById', connection: 'other' }, 'UNKNOWN_CONNECTION']
  ])('refuses %.80j with %s', async (request, code) => {
    const call = await connected({ statements, readOnly: false })
    expect(await call('query', request)).toEqual(withCode(code))
    expect(await call('query', { statement: 'userById', params: [1] })).toEqual({ rows: [{ id: 1, name: 'Jane' }] })
  })
})

describe('values', () => {
  test.each([
    ['true', true],
    ['NULL', null],
    ['42::int2', 42],
    ['-42::int4', -42],
    ['9007199254740993::int8', '9007199254740993'],
    ['123456789012345678901234567890.123456789::numeric', '123456789012345678901234567890.123456789'],
    ["'NaN'::numeric", 'NaN'],
    ['0.1::float4', 0.1],
    ['0.1::float8', 0.1],
    ['1e300::float8', 1e300],
    ["'NaN'::float8", 'NaN'],
    ["'-Infinity'::float8", '-Infinity'],
    ["'a \"quoted\" 👋\n\\ text'", 'a "quoted" 👋\n\\ text'],
    ["'ab'::char(3)", 'ab '],
    ["'\\x00ff0a'::bytea", 'AP8K'],
    ["''::bytea", ''],
    ["'2026-11-26 18:45:00.123456+00'::timestamptz", '2026-11-26T18:45:00.123456+00:00'],
    ["'2026-11-26 18:45:00'::timestamp", '2026-11-26T18:45:00'],
    ["'infinity'::timestamptz", 'infinity'],
    ["'2026-11-26'::date", '2026-11-26'],
    ["'18:45'::time", '18:45:00'],
    ["'1 day'::interval", '1 day'],
    ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    ["'{\"a\": [1, null]}'::json", { a: [1, null] }],
    ["'{\"a\": [1, null]}'::jsonb", { a: [1, null] }],
    ["'null'::jsonb", null],
    ['ARRAY[1, NULL, 3]', [1, null, 3]],
    ['ARRAY[[1, 2], [3, 4]]', [[1, 2], [3, 4]]],
    ["ARRAY['a,b', 'NULL', NULL, '\"']", ['a,b', 'NULL', null, '"']],
    ['ARRAY[9007199254740993]', ['9007199254740993']],
    ["ARRAY['\\x00'::bytea]", ['AA==']],
    ["'{}'::int[]", []],
    ["'(1,2)'::point", '(1,2)']
  ])('of SQL are JSON: %s is %j', async (sql, value) => {
    const query = await free()
    expect(await query(`SELECT ${sql} AS value`)).toEqual({ rows: [{ value }] })
  })

  test('keep all digits of numbers in json', async () => {
    const plugin = await open(wasm, { functions: connect({ db: postgres(pool, { statements: { big: "SELECT '12345678901234567890.1'::jsonb AS big" } }) }) })
    expect((await plugin.call('query', '{"connection":"db","statement":"big"}')).text()).toBe('{"rows":[{"big":12345678901234567890.1}]}')
  })

  test.each([
    ['bool', true, true],
    ['text', null, null],
    ['int4', 5, 5],
    ['int8', '9007199254740993', '9007199254740993'],
    ['int8', Number.MAX_SAFE_INTEGER, '9007199254740991'],
    ['numeric', '0.10', '0.10'],
    ['numeric', 0.1, '0.1'],
    ['float8', 1.5, 1.5],
    ['text', "it's", "it's"],
    ['bytea', { $bytes: 'AP8K' }, 'AP8K'],
    ['bytea', { $bytes: '' }, ''],
    ['timestamptz', '2026-11-26T18:45:00.123456+00:00', '2026-11-26T18:45:00.123456+00:00'],
    ['json', { $json: [1, { a: null }] }, [1, { a: null }]],
    ['jsonb', { $json: 'text' }, 'text'],
    ['int[]', [1, null, 3], [1, null, 3]],
    ['text[]', ['a,b', '"', 'NULL', null, ''], ['a,b', '"', 'NULL', null, '']],
    ['bytea[]', [{ $bytes: 'AA==' }], ['AA==']]
  ])('are parameters: %s %j is %j', async (type, param, value) => {
    const query = await free()
    expect(await query(`SELECT $1::${type} AS value`, [param])).toEqual({ rows: [{ value }] })
  })

  test('have the name of their column, whatever that is', async () => {
    const plugin = await open(wasm, { functions: connect({ db: postgres(pool, { statements: { names: 'SELECT 1 AS "__proto__", 2 AS "a""b"' } }) }) })
    expect((await plugin.call('query', '{"connection":"db","statement":"names"}')).text()).toBe('{"rows":[{"__proto__":1,"a\\"b":2}]}')
  })
})

describe('limits', () => {
  test('of rows', async () => {
    const query = await free({ maxRows: 3 })
    expect((await query('SELECT generate_series(1, 3)')).rows).toHaveLength(3)
    expect(await query('SELECT generate_series(1, 4)')).toEqual(withCode('TOO_LARGE'))
  })

  test('of bytes', async () => {
    const query = await free({ maxBytes: 1_000 })
    expect((await query("SELECT repeat('x', 900)")).rows).toHaveLength(1)
    expect(await query("SELECT repeat('x', 1000)")).toEqual(withCode('TOO_LARGE'))
    expect(await query("SELECT repeat('x', 100) FROM generate_series(1, 20)")).toEqual(withCode('TOO_LARGE'))
  })

  test('stop a result that would never end, on the server', async () => {
    const query = await free({ maxRows: 10 })
    expect(await query('SELECT generate_series(1, 1000000000000)')).toEqual(withCode('TOO_LARGE'))
    expect(await busy()).toEqual([])
  })

  test('undo the changes of a statement that exceeds them', async () => {
    const call = await connected({ statements: { rename: "UPDATE users SET name = 'x' RETURNING name" }, readOnly: false, maxRows: 1 })
    expect(await call('query', { statement: 'rename' })).toEqual(withCode('TOO_LARGE'))
    expect((await admin.query("SELECT count(*)::int FROM users WHERE name = 'x'")).rows).toEqual([{ count: 0 }])
  })
})

describe('the end of a call', () => {
  const statements = {
    sleep: 'SELECT pg_sleep(600)',
    change: "UPDATE users SET name = 'changed' WHERE pg_sleep(600) IS NOT NULL"
  }

  test('by its deadline cancels the statement on the server', async () => {
    const call = await connected({ statements })
    const end = expect(call('query', { statement: 'sleep' }, { timeoutMs: 2_000 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    await untilBusy(1)
    await end
    await untilBusy(0)
  })

  test('by its signal cancels the statement on the server, and nothing is changed', async () => {
    const call = await connected({ statements, readOnly: false })
    const abort = new AbortController()
    const end = expect(call('execute', { statement: 'change' }, { signal: abort.signal })).rejects.toThrow('enough')
    await untilBusy(1)
    abort.abort(new Error('enough'))
    await end
    await untilBusy(0)
    expect((await admin.query("SELECT count(*)::int FROM users WHERE name = 'changed'")).rows).toEqual([{ count: 0 }])
  })

  test('ends a statement that catches a cancel', async () => {
    const call = await connected({ statements: 'any' })
    const sql = 'DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN END; END LOOP; END $$'
    const end = expect(call('execute', { sql }, { timeoutMs: 2_000 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    await untilBusy(1)
    await end
    await untilBusy(0)
  })

  test('takes its place from the queue: the next statement runs', async () => {
    const call = await connected({ statements: { ...statements, one: 'SELECT 1 AS one' } }, { instances: 5, eager: true })
    const abort = new AbortController()
    const all = Array.from({ length: 4 }, () => call('query', { statement: 'sleep' }, { signal: abort.signal }).catch(() => 'aborted'))
    // One of the pool's four connections stays free for cancels.
    await untilBusy(3)
    abort.abort()
    expect(await Promise.all(all)).toEqual(new Array(4).fill('aborted'))
    expect(await call('query', { statement: 'one' })).toEqual({ rows: [{ one: 1 }] })
    await untilBusy(0)
  })

  test('is told from the end of the host\'s patience', async () => {
    const call = await connected({ statements, timeoutMs: 100 })
    expect(await call('query', { statement: 'sleep' })).toEqual(withCode('TIMEOUT'))
    await untilBusy(0)
  })
})

describe('free SQL', () => {
  test.each([
    'INSERT INTO users VALUES (3, $1)',
    'SET TRANSACTION READ WRITE',
    'DROP TABLE users',
    "DO $$ BEGIN SET TRANSACTION READ WRITE; INSERT INTO users VALUES (3, 'x'); END $$",
    "SELECT set_config('transaction_read_only', 'off', false), $1::text",
    "COMMIT; INSERT INTO users VALUES (3, 'x')",
    'SELECT 1; DROP TABLE users'
  ])('cannot write if it may only read: %s', async (sql) => {
    const query = await free()
    await query(sql, sql.includes('$1') ? ['x'] : [])
    await query('COMMIT')
    expect((await admin.query('SELECT count(*)::int FROM users')).rows).toEqual([{ count: 2 }])
    expect(await query("INSERT INTO users VALUES (4, 'y')")).toEqual(withCode('NOT_ALLOWED'))
  })

  test('leaves no settings, locks or tables for the next guest', async () => {
    pool.options.max = 2
    const query = await free({ readOnly: false })
    await query("SET search_path = 'elsewhere'")
    await query("SELECT set_config('application_name', 'hidden', false)")
    await query('SELECT pg_advisory_lock(5)')
    await query('CREATE TEMPORARY TABLE users (id int)')
    expect(await query('SELECT name FROM users WHERE id = 1')).toEqual({ rows: [{ name: 'Jane' }] })
    expect((await admin.query("SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory'")).rows).toEqual([{ count: 0 }])
  })

  test('may be empty, and may copy, without an effect on the next statement', async () => {
    const call = await connected({ statements: 'any', readOnly: false, timeoutMs: 500 })
    const next = async () => expect(await call('query', { sql: 'SELECT 1 AS one' })).toEqual({ rows: [{ one: 1 }] })
    for (const sql of ['', '-- nothing', ';']) {
      expect(await call('query', { sql })).toEqual({ rows: [] })
      await next()
    }
    expect(await call('execute', { sql: 'COPY users TO STDOUT' })).toEqual({ rowCount: 2 })
    await next()
    expect(await call('execute', { sql: 'COPY users FROM STDIN' })).toMatchObject({ error: {} })
    await next()
    for (const sql of ['COMMIT', 'ROLLBACK', 'BEGIN', 'START TRANSACTION READ WRITE']) {
      expect(await call('execute', { sql })).toEqual({ rowCount: 0 })
      await next()
    }
  })

  test.each([[{}], [{ sql: 5 }], [{ sql: 'SELECT 1\0' }]])('refuses %j', async (request) => {
    const call = await connected({ statements: 'any' })
    expect(await call('query', request)).toEqual(withCode('INVALID_REQUEST'))
  })
})

describe('errors', () => {
  test('of a guest do not cost a connection', async () => {
    let connections = 0
    pool.on('connect', () => connections++)
    const call = await connected({ statements: { userById: 'SELECT id FROM users WHERE id = $1' } })
    for (const params of [[], ['x'], [1, 2], [2 ** 40], [1]]) await call('query', { statement: 'userById', params })
    expect(connections).toBe(1)
  })

  test('tell the guest codes only, and the host everything', async () => {
    const seen = []
    const call = await connected({ statements: 'any', readOnly: false }, { onError: (error, where) => seen.push([error.message, where]) })
    expect(await call('query', { sql: 'SELECT secret FROM passwords' }))
      .toEqual({ error: { code: 'SQL_ERROR', message: 'the statement is not valid', sqlstate: '42P01' } })
    expect(await call('execute', { sql: "INSERT INTO users VALUES (1, 'x')" }))
      .toEqual({ error: { code: 'CONSTRAINT', message: 'a constraint is violated', sqlstate: '23505' } })
    expect(seen).toEqual([
      ['relation "passwords" does not exist', { connection: 'db', operation: 'query' }],
      ['duplicate key value violates unique constraint "users_pkey"', { connection: 'db', operation: 'execute' }]
    ])
  })

  test('of the connection do not say where it goes', async () => {
    await pool.end()
    pool = new Pool({ connectionString: server.url.replace('postgres@', 'nobody:secret@') })
    const call = await connected({ statements: { one: 'SELECT 1' } })
    const reply = await call('query', { statement: 'one' })
    expect(reply).toEqual({ error: { code: 'UNAVAILABLE', message: 'the database cannot be reached', sqlstate: '28000' } })
  })

  test('end with the server, and the connection is made again', async () => {
    const call = await connected({ statements: { one: 'SELECT 1 AS one', sleep: 'SELECT pg_sleep(600)' } })
    const interrupted = call('query', { statement: 'sleep' })
    await untilBusy(1)
    await server.kill()
    expect(await interrupted).toEqual(withCode('UNAVAILABLE'))
    expect(await call('query', { statement: 'one' })).toEqual(withCode('UNAVAILABLE'))
    await server.start()
    let reply
    do {
      reply = await call('query', { statement: 'one' })
    } while (reply.error !== undefined)
    expect(reply).toEqual({ rows: [{ one: 1 }] })
  })
})

test('a role that may only read is refused by the database, too', async () => {
  await admin.query(`
    DROP ROLE IF EXISTS guest;
    CREATE ROLE guest LOGIN;
    GRANT SELECT ON users TO guest;
    ALTER ROLE guest SET default_transaction_read_only = on`)
  const own = new Pool({ connectionString: server.url.replace('postgres@', 'guest@'), max: 2 })
  try {
    const plugin = await open(wasm, { functions: connect({ db: postgres(own, { statements: 'any', readOnly: false }) }) })
    const query = async (sql) => (await plugin.call('query', JSON.stringify({ connection: 'db', sql }))).json()
    expect(await query('SELECT name FROM users WHERE id = 1')).toEqual({ rows: [{ name: 'Jane' }] })
    for (const sql of ["INSERT INTO users VALUES (3, 'x')", 'CREATE TABLE mine (id int)', 'SELECT pg_read_file(\'/etc/passwd\')']) {
      expect(await query(sql)).toEqual({ error: expect.objectContaining({ code: 'NOT_ALLOWED', sqlstate: '42501' }) })
    }
  } finally {
    await own.end()
    await admin.query('REVOKE SELECT ON users FROM guest; DROP ROLE guest')
  }
})

test('what guests do is counted by the connection, and by their plugin', async () => {
  const db = postgres(pool, { statements: { one: 'SELECT 1 AS one' } })
  const plugin = await open(wasm, { functions: connect({ db }) })
  const call = (name, request) => plugin.call(name, JSON.stringify(request))
  await call('query', { connection: 'db', statement: 'one' })
  await Promise.all([call('query', { connection: 'db', statement: 'one' }), call('execute', { connection: 'db', statement: 'one' })])
  await call('query', { connection: 'db', statement: 'two' })
  await call('publish', { connection: 'db' })
  await call('query', { connection: 'other' })
  await call('query', 'nothing')
  const calls = { query: { OK: 2, NOT_ALLOWED: 1 }, execute: { OK: 1 }, publish: { UNSUPPORTED: 1 } }
  expect(db.stats()).toEqual({ calls, running: 0 })
  expect(plugin.stats().connectors).toEqual({ db: calls, '': { query: { UNKNOWN_CONNECTION: 1, INVALID_REQUEST: 1 } } })
  const other = await open(wasm, { functions: connect({ db }) })
  await other.call('execute', '{"connection":"db","statement":"one"}')
  expect(other.stats().connectors).toEqual({ db: { execute: { OK: 1 } } })
  expect(db.stats().calls.execute).toEqual({ OK: 2 })
})

test('100 guests at once share the pool', async () => {
  const call = await connected({ statements: { double: 'SELECT $1::int * 2 AS double' } }, { instances: 20, eager: true })
  const replies = await Promise.all(Array.from({ length: 100 }, (_, index) => call('query', { statement: 'double', params: [index] })))
  expect(replies.map(({ rows }) => rows[0].double)).toEqual(Array.from({ length: 100 }, (_, index) => index * 2))
  expect(pool.totalCount).toBeLessThanOrEqual(3)
})

test.each([
  [() => postgres()],
  [() => postgres(pool)],
  [() => postgres(pool, {})],
  [() => postgres(pool, { statements: 'all' })],
  [() => postgres(pool, { statements: { one: 1 } })],
  [() => postgres(pool, { statements: {}, readOnly: 1 })],
  [() => postgres(pool, { statements: {}, maxRows: 0 })],
  [() => postgres(pool, { statements: {}, other: 1 })],
  [() => postgres(new Pool({ max: 1 }), { statements: {} })]
])('a mistake of the host throws INVALID_ARGUMENT: %s', (make) => {
  expect(make).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
})
