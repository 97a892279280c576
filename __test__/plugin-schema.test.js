'use strict'

// Schemas of plugins: typed exports, their TypeScript, and routes that validate by them.

const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const Ajv = require('ajv')
const Fastify = require('fastify')
const extismHost = require('extism-host/fastify')
const { parse } = require('yaml')
const { createPlugin } = require('..')
const { toJsonSchema } = require('../lib/internal.js')
const { guest } = require('./support/guest.js')
const { ROOT, runNode } = require('./support/processes.js')

const FILE = '__test__/guests/greeter.yaml'
const XTP = parse(readFileSync(join(ROOT, FILE), 'utf8'))
/** As a generator makes it of a TypeScript interface. */
const JSON_SCHEMA = {
  $ref: '#/definitions/Greeter',
  definitions: {
    Greeter: { type: 'object', properties: { echo: { type: 'object', properties: { input: { $ref: '#/definitions/Person' }, output: { $ref: '#/definitions/Person' } } } } },
    Person: { type: 'object', required: ['name'], properties: { name: { type: 'string' } }, additionalProperties: false }
  }
}

let many
let plugin
beforeAll(async () => { many = await guest('many') })
afterEach(() => plugin?.close())

const open = async (schema) => { plugin = await createPlugin(many, { schema }) }

describe('exports', () => {
  test('take and return values by the schema: JSON, text, bytes', async () => {
    await open(XTP)
    expect(Object.keys(plugin.exports)).toEqual(['echo', 'fail', 'count'])
    const jane = { name: 'Jane 👋', age: null, friend: { name: 'Joe', mood: 'happy' } }
    expect(await plugin.exports.echo(jane)).toEqual(jane)
    expect(await plugin.exports.count()).toEqual(new Uint8Array([1]))
    await expect(plugin.exports.fail('on purpose')).rejects.toMatchObject({ code: 'PLUGIN_ERROR', function: 'fail', message: expect.stringContaining('on purpose') })
  })

  test('are those of a JSON Schema, too, and strings without a content type are text', async () => {
    await open(JSON_SCHEMA)
    expect(await plugin.exports.echo({ name: 'Jane' })).toEqual({ name: 'Jane' })
    await plugin.close()
    await open({ exports: { echo: { input: { type: 'string' }, output: { type: 'string' } } } })
    expect(await plugin.exports.echo('Jane')).toBe('Jane')
    await plugin.close()
    await open({ exports: { echo: { input: { type: 'string', contentType: 'application/json' }, output: { type: 'buffer' } } } })
    expect(Buffer.from(await plugin.exports.echo('Jane')).toString()).toBe('"Jane"')
  })

  test('take the host context and the options of a call', async () => {
    await open(XTP)
    await expect(plugin.exports.echo({ name: 'Jane' }, undefined, { signal: AbortSignal.abort(new Error('never mind')) })).rejects.toThrow('never mind')
  })

  test.each([
    ['fail', 5, '"fail" must be a string, not a number'], ['echo', undefined, '"echo" must be a value of JSON'],
    ['count', 'x', '"count" must be undefined']
  ])('reject inputs of another kind: %s(%j)', async (name, input, message) => {
    await open(XTP)
    await expect(plugin.exports[name](input)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) })
  })

  test('reject an output that is not JSON', async () => {
    await open({ exports: { echo: { input: { type: 'string' }, output: { type: 'object' } } } })
    await expect(plugin.exports.echo('{')).rejects.toThrow(SyntaxError)
  })

  test('need a schema', async () => {
    await open(undefined)
    expect(() => plugin.exports).toThrow('exports needs the option schema')
  })

  test('inherit nothing', async () => {
    await open({ exports: { echo: {} } })
    expect(plugin.exports.constructor).toBeUndefined()
  })
})

test.each([
  [5, 'schema must be an object'],
  [{}, 'schema must have "exports"'],
  [{ exports: { echo: { input: { $ref: '#/components/schemas/Nobody' } } } }, 'but no such part'],
  [{ exports: { echo: { input: { $ref: '#/__proto__/x' } } } }, 'but no such part'],
  [{ exports: { echo: { input: { $ref: 'https://example.com/person.json' } } } }, 'references must lead to a part of the schema'],
  [{ exports: { echo: { input: { $ref: '#/exports/echo/input' } } } }, 'references must lead to a part of the schema'],
  [{ exports: { echo: { input: 'text' } } }, 'a part of schema must be an object'],
  [{ exports: { shout: {} } }, 'schema has the function "shout", which the plugin does not have; there are']
])('the schema %j is refused', async (schema, message) => {
  await expect(open(schema)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) })
})

test('a schema whose parts refer to each other over and over is not expanded without end', () => {
  const names = Array.from({ length: 30 }, (_, index) => `Part${index}`)
  const referTo = (others) => ({ type: 'object', properties: Object.fromEntries(others.map((name) => [name, { $ref: `#/components/schemas/${name}` }])) })
  const schema = { components: { schemas: Object.fromEntries(names.map((name) => [name, { ...referTo(names), required: ['Part0'] }])) } }
  const converted = toJsonSchema(schema, { $ref: '#/components/schemas/Part0' })
  const validate = new Ajv().compile(converted)
  expect(validate({ Part0: {} })).toBe(false)
  expect(validate.errors[0].instancePath).toBe('/Part0')
  expect(JSON.stringify(converted).length).toBeLessThan(2 ** 21)
})

describe('routes', () => {
  let app
  afterEach(() => app.close())

  async function build (routes, schema = XTP) {
    app = Fastify()
    app.register(require('@fastify/swagger'), { openapi: {} })
    await app.after()
    app.register(extismHost, { plugins: { greeter: { source: many, schema } }, routes: routes.map((route) => ({ plugin: 'greeter', ...route })) })
    await app.ready()
  }

  const post = (url, payload) => app.inject({ method: 'POST', url, payload })

  test('validate bodies by the schema, and have its content types', async () => {
    await build([{ url: '/echo', function: 'echo' }, { url: '/count', function: 'count' }])
    const answer = await post('/echo', { name: 'Jane', age: null, friend: { name: 'Joe', friend: null } })
    expect([answer.statusCode, answer.json()]).toEqual([200, { name: 'Jane', age: null, friend: { name: 'Joe', friend: null } }])
    expect(answer.headers['content-type']).toBe('application/json; charset=utf-8')
    for (const [wrong, message] of [[{}, "required property 'name'"], [{ name: 'Jane', mood: 'angry' }, 'body/mood'], [{ name: 'Jane', age: 'old' }, 'body/age'], [{ name: 'Jane', friend: { name: 'Joe', friend: { age: 5 } } }, 'body/friend/friend']]) {
      expect((await post('/echo', wrong)).json()).toMatchObject({ statusCode: 400, message: expect.stringContaining(message) })
    }
    expect(app.swagger().paths['/echo'].post.requestBody.content['application/json'].schema.properties.mood).toEqual({ type: 'string', enum: ['happy', 'sad'] })
    expect((await post('/count')).headers['content-type']).toBe('application/octet-stream')
  })

  test('keep a body and a content type of their own', async () => {
    await build([{ url: '/echo', function: 'echo', contentType: 'text/plain', schema: { body: { type: 'object' } } }])
    const answer = await post('/echo', {})
    expect([answer.statusCode, answer.headers['content-type']]).toEqual([200, 'text/plain'])
  })

  test('of a function that the schema lacks are refused', async () => {
    await expect(build([{ url: '/', function: 'read_store' }])).rejects.toThrow('routes[0] calls "read_store", which the schema of its plugin does not have')
  })
})

describe('the command', () => {
  let directory
  beforeEach(() => { directory = mkdtempSync(join(tmpdir(), 'extism-host-types-')) })
  afterEach(() => rmSync(directory, { recursive: true }))
  const types = (...args) => runNode(['bin/extism-host.js', 'types', ...args])

  test('writes the types that the tests of types use', async () => {
    const { code, output } = await types(FILE)
    expect({ code, output }).toEqual({ code: 0, output: readFileSync(join(ROOT, '__test__/types/greeter.d.ts'), 'utf8') })
  })

  test('reads a JSON Schema, and writes a file with a name of its own', async () => {
    const file = join(directory, 'my-greeter.schema.json')
    writeFileSync(file, JSON.stringify(JSON_SCHEMA))
    expect(await types(file)).toMatchObject({ code: 0, output: expect.stringMatching(/export interface MyGreeter \{\s+echo: \{\s+input: Person\s+output: Person/) })
    expect(await types(file, '--name', 'Greetings', '-o', join(directory, 'out.d.ts'))).toMatchObject({ code: 0, output: '' })
    expect(readFileSync(join(directory, 'out.d.ts'), 'utf8')).toContain('export interface Greetings {')
  })

  test('keeps properties that are named like keywords', async () => {
    const file = join(directory, 'mail.json')
    const properties = { contentType: { type: 'string' }, nullable: { type: 'boolean' }, $ref: { type: 'string' }, type: { type: 'integer' } }
    writeFileSync(file, JSON.stringify({ exports: { send: { input: { type: 'object', properties, required: Object.keys(properties) } } } }))
    const { output } = await types(file)
    for (const line of ['contentType: string', 'nullable: boolean', '$ref: string', 'type: number']) expect(output).toContain(line)
  })

  test('takes no TypeScript from a schema', async () => {
    const file = join(directory, 'hostile.json')
    const hostile = { type: 'string', tsType: 'any; evil: 1', tsEnumNames: ['evil'], description: 'evil: */ evil: 1' }
    writeFileSync(file, JSON.stringify({ exports: { send: { input: { type: 'object', properties: { text: hostile }, required: ['text'], additionalProperties: false } } } }))
    const { code, output } = await types(file)
    expect(code).toBe(0)
    expect(output).toContain('text: string')
    expect(output.replace(/\/\*[^]*?\*\//g, '')).not.toContain('evil')
  })

  test.each([
    ['version: v0\nexports: [greet]\n', 'its version is v0; only v1-draft is supported'], ['a: [', 'is not a schema of a plugin'], ['{}', 'schema must have "exports"']
  ])('refuses %j in one line', async (text, message) => {
    const file = join(directory, 'schema.yaml')
    writeFileSync(file, text)
    const { code, errors } = await types(file)
    expect(code).toBe(2)
    expect(errors).toContain(message)
  })

  test('reads no other file', async () => {
    const file = join(directory, 'schema.json')
    writeFileSync(file, JSON.stringify({ exports: { echo: { input: { type: 'object', properties: { other: { $ref: 'file:///etc/hostname' } } } } } }))
    expect(await types(file)).toMatchObject({ code: 1, output: '', errors: expect.stringContaining('references must lead to a part of the schema') })
  })

  test('serve reads the schema of a plugin from its configuration, and so does config check', async () => {
    writeFileSync(join(directory, 'many.wasm'), many)
    writeFileSync(join(directory, 'greeter.yaml'), readFileSync(join(ROOT, FILE)))
    writeFileSync(join(directory, 'serve.yaml'), 'plugins: { greeter: { wasm: many.wasm, schema: greeter.yaml } }\nroutes: [{ url: /, plugin: greeter, function: echo }]\n')
    expect(require('../packages/cli/lib/config.js').readConfig(join(directory, 'serve.yaml')).plugins.greeter.schema).toEqual(XTP)
    rmSync(join(directory, 'greeter.yaml'))
    const { code, errors } = await runNode(['bin/extism-host.js', 'config', 'check', join(directory, 'serve.yaml')])
    expect([code, errors]).toEqual([2, expect.stringContaining('cannot read the schema')])
  })
})
