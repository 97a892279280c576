import { expectError, expectType } from 'tsd'
import { createPlugin, type Plugin, type PluginOutput } from '../..'
import type { Greeter, Person } from './greeter'

async function greet () {
  const plugin = await createPlugin<Greeter>('greeter.wasm', { schema: { exports: {} } })
  expectType<Plugin<Greeter>>(plugin)
  // A function that takes any plugin takes this one.
  const any: Plugin = plugin
  expectType<Plugin>(any)

  expectType<Person>(await plugin.exports.echo({ name: 'Jane', age: null, mood: 'happy' }))
  expectType<string>(await plugin.exports.fail('reason', { user: 'Jane' }, { timeoutMs: 100 }))
  expectType<Uint8Array>(await plugin.exports.count())
  expectType<Uint8Array>(await plugin.exports.count(undefined, undefined, { timeoutMs: 100 }))
  expectError(plugin.exports.echo())
  expectError(plugin.exports.echo({}))
  expectError(plugin.exports.echo({ name: 'Jane', mood: 'angry' }))
  expectError(plugin.exports.fail(5))
  expectError(plugin.exports.count('input'))
  expectError(plugin.exports.other())

  const output = await plugin.call('echo', JSON.stringify({ name: 'Jane' }))
  expectType<PluginOutput<Person> | null>(output)
  expectType<Person | undefined>(output?.json())
  expectType<PluginOutput<Person> | null>(plugin.callSync('echo', '{}'))
  await plugin.call('fail', 'reason', undefined, { timeoutMs: 100 })
  expectError(plugin.call('other'))
  expectError(plugin.call('echo', { name: 'Jane' }))
}

// An interface may be written by hand, too.
async function byHand () {
  const plugin = await createPlugin<{ greet: { input: string, output: { text: string } } }>('greeter.wasm')
  expectType<string>((await plugin.exports.greet('Jane')).text)
}

// Without an interface, names and values are not checked.
async function untyped () {
  const plugin = await createPlugin('greeter.wasm')
  expectType<Promise<PluginOutput | null>>(plugin.call<{ user: string }>('anything', 'input', { user: 'Jane' }))
  await plugin.exports.anything({ any: 'thing' })
  expectError(createPlugin('greeter.wasm', { schema: 'greeter.yaml' }))
}

greet()
byHand()
untyped()
