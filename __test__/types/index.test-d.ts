import { expectAssignable, expectError, expectType } from 'tsd'
import pino from 'pino'
import Keyv from 'keyv'
import createPluginByDefault, {
  CallContext, createPlugin, keyvAdapter, newPlugin, openStore, precompile, CAPABILITIES, ErrorCode, MemoryStore, Plugin, PluginError, PluginOutput, Store
} from '../..'
import type {
  Capabilities, CurrentPlugin, ExtismPluginOptions, LogLevel, Manifest, ManifestLike, ManifestWasm, ManifestWasmData, ManifestWasmModule,
  ManifestWasmPath, ManifestWasmResponse, ManifestWasmUrl, MemoryOptions, ModuleExportDescriptor, ModuleImportDescriptor,
  PluginConfig, PluginConfigLike, StoreChange
} from '../..'

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
  openTimeoutMs: 1000,
  memory: { maxPages: 16, maxVarBytes: 0 },
  maxQueueBytes: 2 ** 20,
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
expectType<Promise<PluginOutput | null>>(plugin.call<{ user: string }>('name', '', { user: 'Jane' }))
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
declare const unknown: unknown
if (unknown instanceof PluginError) expectType<ErrorCode>(unknown.code)
expectType<'TIMEOUT'>(ErrorCode.TIMEOUT)
expectType<number | undefined>(error.returnCode)
expectType<string>(error.docs)
expectType<Promise<void>>(plugin.close({ timeoutMs: 1 }))
expectAssignable<Error>(error)
expectAssignable<string>(error.code)
expectType<string | undefined>(error.plugin)
expectType<Promise<Plugin>>(createPlugin('plugin.wasm', { name: 'greeter' }))

expectType<PluginOutput | null>(plugin.callSync('f', 'input', undefined, { timeoutMs: 10 }))
expectError(plugin.callSync('f', 'input', undefined, { signal: new AbortController().signal }))
expectType<number>(plugin.stats().calls.succeeded)
expectType<number | undefined>(plugin.stats().calls.failed.TRAP)
expectType<number>(plugin.stats().replaced.isolation)
expectType<number>(plugin.stats().replaced.age)
expectType<number>(plugin.stats().store.hits)
expectType<number | undefined>(plugin.stats().store.failed.ACCESS_DENIED)
expectType<Promise<Plugin>>(createPlugin('plugin.wasm', {
  store: { store, prefix: 'visits/', access: 'write', maxValueBytes: 4096, maxKeys: 1000 }
}))
expectError(createPlugin('plugin.wasm', { store: { store, access: 'execute' } }))
expectType<Promise<Plugin>>(createPlugin('plugin.wasm', { isolation: 'call', fuel: 1_000_000 }))
expectError(createPlugin('plugin.wasm', { isolation: 'process' }))
expectType<Promise<Plugin>>(createPlugin('plugin.wasm', { maxCalls: 1_000, maxAgeMs: 60_000 }))

expectType<Promise<Plugin>>(createPlugin('plugin.wasm', {
  logger: console,
  logLevel: 'debug',
  functions: {
    'extism:host/user': {
      store (context, offset: bigint) {
        expectType<CallContext>(context)
        expectType<PluginOutput | null>(context.read(offset))
        expectType<{ user: string }>(context.hostContext<{ user: string }>())
        expectType<bigint>(context.store('text'))
        expectType<AbortSignal>(context.signal)
        return context.alloc(1)
      },
      async later (context: CallContext) {
        context.setVariable('name', new Uint8Array(1))
        return context.getVariable('name')?.text()
      }
    }
  }
}))
expectError(createPlugin('plugin.wasm', { functions: { env: { f: 1 } } }))
expectError(createPlugin('plugin.wasm', { logLevel: 'loud' }))
expectType<Promise<PluginOutput | null>>(plugin.call('f', '', { any: 'context' }, { logger: pino() }))
expectType<typeof createPlugin>(createPluginByDefault)
expectType<typeof createPlugin>(newPlugin)
expectType<Capabilities>(CAPABILITIES)
expectType<boolean>(CAPABILITIES.fsAccess)
expectError(() => { CAPABILITIES.fsAccess = false })

expectAssignable<ManifestLike>('{"wasm": []}')
expectAssignable<ManifestLike>(new URL('https://example.com'))
expectAssignable<ManifestLike>(new Response())
expectAssignable<ManifestWasm>({ url: 'https://example.com', name: 'a' } satisfies ManifestWasmUrl & { name: string })
expectAssignable<ManifestWasm>({ path: 'a.wasm' } satisfies ManifestWasmPath)
expectAssignable<ManifestWasm>({ data: 'AGFzbQEAAAA=' } satisfies ManifestWasmData)
expectAssignable<ManifestWasm>({ response: new Response() } satisfies ManifestWasmResponse)
declare const compiled: ManifestWasmModule
expectError(createPlugin({ wasm: [compiled] }))
expectAssignable<Manifest>({
  wasm: [], config: {}, timeout_ms: 5, timeoutMs: null, memory: { max_pages: 1, maxPages: 1, max_var_bytes: 1 }
})
expectError<Manifest>({ wasm: [], use_wasi: true })
expectAssignable<MemoryOptions>({ maxPages: 1, maxVarBytes: 0 })
expectAssignable<ExtismPluginOptions>({
  runInWorker: true, sharedArrayBufferSize: 65536, nodeWorkerArgs: { name: 'worker' }, fetch, timeout_ms: 5
})
expectError<ExtismPluginOptions>({ nodeWorkerArgs: { resourceLimits: { stackSizeMb: 4 } } })
expectAssignable<PluginConfigLike>({ key: 'value' } satisfies PluginConfig)
expectAssignable<LogLevel>('silent')
expectAssignable<CallContext>({} as CurrentPlugin)

expectType<Promise<ModuleExportDescriptor[]>>(plugin.getExports())
expectType<Promise<ModuleImportDescriptor[]>>(plugin.getImports())
expectType<Promise<never>>(plugin.getInstance())
expectType<boolean>(plugin.isActive())
expectType<Promise<boolean>>(plugin.reset())

expectType<Promise<Plugin>>(createPlugin('plugin.wasm', {
  useWasi: true,
  allowedPaths: { 'ro:/srv': '/data' },
  enableWasiOutput: 'logger',
  wasi: { args: ['plugin'], env: { A: 'b' } }
}))
expectType<Promise<Plugin>>(createPlugin('plugin.wasm', { allowedPaths: [{ host: '/srv', guest: '/data', readOnly: true }] }))
expectType<Promise<Plugin>>(createPlugin({ wasm: [{ path: 'plugin.wasm' }], allowed_paths: { '/srv': '/data' } }))
expectError(createPlugin('plugin.wasm', { enableWasiOutput: 'file' }))
expectError(createPlugin('plugin.wasm', { allowedPaths: [{ host: '/srv' }] }))

expectType<MemoryStore>(new MemoryStore(null, { maxBytes: 1024 }).set('key', 'value', { ttlMs: 1000 }))
expectError(new MemoryStore(null, { maxKeys: 1024 }))
expectError(store.set('key', 'value', { ttl: 1000 }))

expectType<Promise<Store>>(openStore('memory:', { maxBytes: 1024 }))
expectType<Promise<Store>>(openStore(new URL('memory:name')))
expectType<Promise<Store>>(openStore('redb:./data.redb', { cacheBytes: 64 << 20 }))
expectError(openStore('redb:./data.redb', { cacheBytes: '64 MiB' }))
expectError(new MemoryStore(null, { cacheBytes: 1024 }))
expectType<Promise<Store>>(openStore('rediss://localhost', { timeoutMs: 1000, cacheBytes: 0, ca: new Uint8Array(1) }))
expectError(openStore('redis://localhost', { timeout: 1000 }))
expectError(openStore())
const opened = await openStore(store)
expectType<Promise<Buffer | undefined>>(opened.get('key'))
expectType<Promise<void>>(opened.set('key', new Uint8Array(1), { ttlMs: 1000 }))
expectType<Promise<boolean>>(opened.delete('key'))
expectType<Promise<boolean>>(opened.has('key'))
expectType<Promise<number | bigint>>(opened.increment('key', 2n))
expectType<Promise<boolean>>(opened.compareAndSwap('key', undefined, 'value', { ttlMs: 1000 }))
expectType<Promise<Array<Buffer | undefined>>>(opened.getMany(new Set(['key'])))
expectType<Promise<void>>(opened.setMany(new Map([['key', 'value']]), { ttlMs: 1000 }))
expectType<Promise<number>>(opened.deleteMany(['key']))
expectType<AsyncGenerator<string, void, undefined>>(opened.keys({ prefix: 'user:' }))
const changes = opened.watch('user:', { signal: AbortSignal.timeout(5) })
const change: StoreChange = (await changes.next()).value
if (change.type === 'set') expectType<Buffer | undefined>(change.value)
expectType<Promise<void>>(opened.close())
expectError(opened.set('key', 1))
expectType<Promise<Plugin>>(createPlugin('plugin.wasm', { store: opened }))
expectType<Keyv>(new Keyv({ store: keyvAdapter(opened), namespace: 'users' }))
expectError(keyvAdapter(new Map()))
