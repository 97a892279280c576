import { expectAssignable, expectError, expectType } from 'tsd'
import { createPlugin, precompile, MemoryStore, Plugin, PluginError, PluginOutput } from '../..'

const store = new MemoryStore([['text', 'value'], ['bytes', new Uint8Array(1)]])
expectType<MemoryStore>(store.set('key', Buffer.from('value')))
expectType<string | Buffer | undefined>(store.get('key'))
expectType<number>(store.size)
expectType<boolean>(store.delete('key'))
for (const [key, value] of store) {
  expectType<string>(key)
  expectType<string | Buffer>(value)
}
expectError(store.set(1, 'value'))
expectError(store.set('key', 1))
expectError(new MemoryStore([['key', 1]]))

expectType<Promise<Plugin>>(createPlugin('plugin.wasm'))
expectType<Promise<Plugin>>(createPlugin(new URL('file:///plugin.wasm')))
expectType<Promise<Plugin>>(createPlugin(new Uint8Array(8), {
  useWasi: true,
  store,
  instances: 2,
  eager: true,
  maxQueue: 100,
  config: { key: 'value' },
  timeoutMs: 1000,
  memory: { maxPages: 16, maxVarBytes: 0 },
  maxOutputBytes: 1024,
  compileCache: { directory: '/tmp/cache', maxBytes: 1 }
}))
expectType<Promise<Plugin>>(createPlugin('plugin.wasm', { compileCache: false }))
expectError(createPlugin('plugin.wasm', { compileCache: 'directory' }))
expectError(createPlugin('plugin.wasm', { compileCache: { unknown: true } }))
expectType<Promise<Plugin>>(createPlugin(Promise.resolve({
  wasm: [{ path: 'library.wasm', name: 'library', hash: '00' }, { data: new ArrayBuffer(8) }],
  timeout_ms: 5
})))
expectError(createPlugin())
expectError(createPlugin(42))
expectError(createPlugin({ wasm: [{ name: 'neither path nor data' }] }))
expectError(createPlugin({ wasm: [{ path: 'a.wasm', data: new Uint8Array() }] }))
expectError(createPlugin('plugin.wasm', { store: new Map() }))
expectError(createPlugin('plugin.wasm', { unknown: true }))

expectType<Promise<void>>(precompile('plugin.wasm', { useWasi: true, compileCache: { directory: '/tmp/cache' } }))
expectError(precompile())
expectError(precompile('plugin.wasm', { unknown: true }))

expectType<Promise<Plugin>>(createPlugin('plugin.wasm', {
  allowedHosts: ['*.example.com'],
  allowHttpResponseHeaders: true,
  memory: { maxHttpResponseBytes: 1024 }
}))
expectType<Promise<Plugin>>(createPlugin({ wasm: [{ path: 'a.wasm' }], allowed_hosts: ['example.com'] }))
expectError(createPlugin('plugin.wasm', { allowedHosts: 'example.com' }))

const plugin = await createPlugin('plugin.wasm')
const output = await plugin.call('name', 'input')
expectType<PluginOutput | null>(output)
expectType<Promise<PluginOutput | null>>(plugin.call('name', new DataView(new ArrayBuffer(1))))
expectType<Promise<PluginOutput | null>>(plugin.call('name'))
expectType<Promise<PluginOutput | null>>(plugin.call('name', 'input', null, { signal: AbortSignal.timeout(5), timeoutMs: 5 }))
expectError(plugin.call('name', 'input', null, { timeout: 5 }))
expectError(plugin.call())
expectError(plugin.call('name', 42))
if (output !== null) {
  expectType<string>(output.text())
  expectType<Uint8Array>(output.bytes())
  expectType<any>(output.json())
  expectAssignable<DataView>(output)
}
expectType<Promise<boolean>>(plugin.functionExists('name'))
expectType<Promise<void>>(plugin.close())
expectType<Promise<void>>(plugin[Symbol.asyncDispose]())

declare const error: PluginError
expectAssignable<Error>(error)
expectAssignable<string>(error.code)

expectType<PluginOutput | null>(plugin.callSync('f', 'input', undefined, { timeoutMs: 10 }))
expectError(plugin.callSync('f', 'input', undefined, { signal: new AbortController().signal }))
expectType<number>(plugin.stats().calls.succeeded)
expectType<number | undefined>(plugin.stats().calls.failed.TRAP)
expectType<number>(plugin.stats().replaced.isolation)
expectType<Promise<Plugin>>(createPlugin('plugin.wasm', { isolation: 'call', fuel: 1_000_000 }))
expectError(createPlugin('plugin.wasm', { isolation: 'process' }))
