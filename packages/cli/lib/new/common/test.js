'use strict'

const assert = require('node:assert/strict')
const { after, before, test } = require('node:test')
const { createPlugin } = require('extism-host')

let plugin

before(async () => { plugin = await createPlugin('plugin.wasm', { useWasi: true, timeoutMs: 1_000 }) })
after(() => plugin?.close())

test('greets by name', async () => {
  const output = await plugin.call('greet', 'Zoë')
  assert.equal(output.text(), 'Hello, Zoë!')
})

test('refuses to greet nobody', () =>
  assert.rejects(plugin.call('greet'), { code: 'PLUGIN_ERROR', message: /whom shall I greet\?/ }))
