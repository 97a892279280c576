/// <reference types="node" />
/// <reference lib="esnext.disposable" />

/** Bytes in any of JavaScript's forms. They are always copied; shared memory is copied before it is read. */
export type Bytes = ArrayBufferView | ArrayBuffer | SharedArrayBuffer

/** The sources of a module, of which a manifest names exactly one. */
interface WasmSources {
  /** The path of a file. */
  path: string
  /** The bytes, or base64 in JSON. */
  data: Bytes | string
  /**
   * An `http:` or `https:` URL to fetch; redirects are followed. The `content-type` must be `application/wasm` or
   * `application/octet-stream`, or missing. A `file:` URL names a file.
   */
  url: string | URL
  /** A response whose body has not been read. */
  response: Response
}

type WasmFrom<Key extends keyof WasmSources> =
  Pick<WasmSources, Key> & { [Other in Exclude<keyof WasmSources, Key>]?: undefined }

/** A module in a file. */
export type ManifestWasmPath = WasmFrom<'path'>
/** A module as bytes. */
export type ManifestWasmData = WasmFrom<'data'>
/** A module at a URL. */
export type ManifestWasmUrl = WasmFrom<'url'>
/** A module in the body of a response. */
export type ManifestWasmResponse = WasmFrom<'response'>

/**
 * A compiled module, which cannot be loaded: it is rejected with `INVALID_ARGUMENT`.
 * @deprecated A `WebAssembly.Module` does not expose its bytes. Pass the bytes that it was compiled from.
 */
export interface ManifestWasmModule { module: object }

/** One module of a manifest: its source, name and hash. */
export type ManifestWasm = (ManifestWasmPath | ManifestWasmData | ManifestWasmUrl | ManifestWasmResponse) & {
  /** The name under which the plugin's other modules import it. */
  name?: string
  /** The expected SHA-256 of the module, in hexadecimal. A different module is rejected with `HASH_MISMATCH`. */
  hash?: string
}

/** Converts a name to the spelling of Extism's JSON manifests: `maxPages` to `max_pages`. */
type SnakeCase<Key extends string> = Key extends `${infer Head}${infer Tail}`
  ? `${Head extends Lowercase<Head> ? Head : `_${Lowercase<Head>}`}${SnakeCase<Tail>}`
  : Key
type InBothSpellings<T> = T & { [Key in keyof T as SnakeCase<Key & string>]: T[Key] }

interface MemoryLimits {
  /**
   * Limits the growth of an instance's memories, in pages of 64 KiB, from 1 to 65,536. It covers the memories of all
   * its modules, and the memory that holds inputs, outputs and the values of host functions. Those values alone may
   * also take that many pages at any moment of a call. A call that exceeds the limit rejects with `OUT_OF_MEMORY`.
   *
   * The initial sizes of the modules' memories do not count; together they may be up to 4,096 pages, or `maxPages` if
   * that is more. Without `maxPages`, all memories may have 4,096 pages (256 MiB) together, initial sizes included.
   */
  maxPages?: number
  /**
   * Limits the values of the plugin's variables, in bytes; 0 turns variables off. A value that does not fit ends the
   * call with `HOST_FUNCTION_ERROR`. The names have the same limit, but at least 64 KiB, and count 48 bytes more for
   * each variable. All instances of a plugin share its variables.
   * @defaultValue 1048576 (1 MiB)
   */
  maxVarBytes?: number
  /**
   * Limits the body of the response to an HTTP request of the plugin, in bytes, from 1 to 4,294,967,295. If a body is
   * larger, reading stops, and the call rejects with `HOST_FUNCTION_ERROR`. The plugin also needs memory for the
   * body: see `maxPages`.
   * @defaultValue 52428800 (50 MiB)
   */
  maxHttpResponseBytes?: number
}

/** Limits of one instance's memory. */
export type MemoryOptions = InBothSpellings<MemoryLimits>

/** The configuration of a plugin: strings by name. */
export type PluginConfig = Record<string, string>
/** The configuration of a plugin, as an option. */
export interface PluginConfigLike { [key: string]: string }

/** A directory of this machine that a plugin may use. */
export interface AllowedPath {
  /** The path on this machine. */
  host: string
  /** The path in the guest. */
  guest: string
  /**
   * Whether the plugin may only read the directory.
   * @defaultValue false
   */
  readOnly?: boolean
}

interface CommonOptions {
  /** The configuration that the plugin reads. The option replaces the manifest's configuration as a whole. */
  config?: PluginConfigLike
  /**
   * The time limit of a call in milliseconds, from 1 to 4,294,967,295. A call that exceeds it rejects with `TIMEOUT`.
   * Time in the queue does not count. The initialization of an instance has the same limit; without one, 30 s.
   * @defaultValue no limit
   */
  timeoutMs?: number | null
  /** The memory limits. Each limit in the options overrides the same limit in the manifest. */
  memory?: MemoryOptions
  /**
   * The hosts that the plugin may send HTTP requests to. Entries are names, IP addresses, or patterns with `*` (any
   * number of characters, including dots), `?` (one character) and `[a-z]` or `[!a-z]` (a character in or outside the
   * range), without scheme, port and path. Letter case does not matter. Redirects are followed to these hosts only. A
   * request to any other host ends the call with `HOST_FUNCTION_ERROR`.
   *
   * An entry that cannot match any host is rejected with `INVALID_ARGUMENT`. See docs/reference/http.md.
   * @defaultValue [] (no hosts)
   */
  allowedHosts?: string[] | null
  /**
   * The directories of this machine that the plugin may use with WASI: an object `{ [host]: guest }`, such as
   * `{ '/srv/data': '/data' }`, or a list. The prefix `ro:` before the host's directory makes it read-only. The
   * JavaScript SDK uses the opposite order; docs/reference/wasi.md says when that is recognized.
   * @defaultValue {} (none)
   */
  allowedPaths?: Record<string, string> | AllowedPath[] | null
}

/** The options that a manifest may also contain, in camelCase or snake_case. Options override the manifest. */
export type ManifestOptions = InBothSpellings<CommonOptions>

/**
 * Describes a plugin of one or more modules. The main module is the one named `main`, else the last one without a
 * name, else the last one.
 */
export interface Manifest extends ManifestOptions {
  /** The modules. */
  wasm: ManifestWasm[]
}

/**
 * The source of a plugin:
 *
 * - a manifest, as an object or as a JSON string that begins with `{`;
 * - the bytes of a module;
 * - an `http:` or `https:` URL, as a string or a `URL`. Redirects are followed. The `content-type` tells whether the
 *   response is a manifest (`application/json`, `text/json`) or a module (`application/wasm`,
 *   `application/octet-stream`, or none);
 * - a `Response`, read the same way;
 * - a `file:` URL, or any other string, which is the path of a module.
 *
 * A manifest from the network must not name files of this machine.
 */
export type ManifestLike = Manifest | Response | Bytes | string | URL
/** The same as `ManifestLike`. */
export type PluginSource = ManifestLike

/** Configures the cache of compiled modules. The code in its directory is executed. */
export interface CompileCacheOptions {
  /**
   * The directory of the cache. It must belong to this user, and nobody else may have access (mode 700). A missing
   * directory is created; an unusable one is rejected with `INVALID_ARGUMENT`. It may be read-only if it already
   * contains a plugin with the same options.
   * @defaultValue the directory of `EXTISM_HOST_CACHE_DIR`, or else `extism-host` in the user's cache directory; if
   * that cannot be used, every start compiles
   */
  directory?: string
  /**
   * The soft limit of the cache's size in bytes, from 1 on. Wasmtime checks it when it adds an entry, at most once an
   * hour; above the limit, it evicts the least recently used modules until 70 % of the limit are left.
   * @defaultValue 536870912 (512 MiB)
   */
  maxBytes?: number
}

/** The level of a log message, or `'silent'` for none. */
export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent'

/**
 * The destination of a plugin's log messages: the console, one of pino's loggers, or any object with methods of these
 * names. Messages of a level without a method are dropped.
 */
export interface Logger {
  trace? (message: string): void
  debug? (message: string): void
  info? (message: string): void
  warn? (message: string): void
  error? (message: string): void
}

/**
 * A host function in JavaScript, which the guest can call.
 *
 * Arguments of type i64 are bigints, usually offsets of memory blocks; others are numbers. The result, or the value
 * of the returned promise, is converted as WebAssembly does it. If the guest expects an i64, the function may also
 * return a string or bytes: they go into a block, and the guest gets its offset.
 *
 * While the function runs, the guest waits on its own thread, and the event loop keeps turning. If the function
 * throws or its promise rejects, the plugin's call rejects with that error. The instance is then replaced: the
 * guest's state is lost, and the plugin's variables stay. The function runs in the asynchronous context
 * (`AsyncLocalStorage`) of the plugin's call.
 *
 * A function that awaits a call of its own plugin needs another instance for it. If all instances wait for such
 * calls, the inner call rejects with `WOULD_DEADLOCK`.
 *
 * @param context the access to the guest, until the function returns
 * @param args the guest's arguments
 *
 * @example
 * ```js
 * const plugin = await createPlugin('plugins/say-hello/say-hello.wasm', {
 *   useWasi: true,
 *   functions: {
 *     'extism:host/user': {
 *       async hostMemoryGet (context, keyOffset) {
 *         const key = context.read(keyOffset).text()
 *         return `the value of ${key}`
 *       }
 *     }
 *   }
 * })
 * const output = await plugin.call('say_hello', 'Jane')
 * console.log(output.text().split('\n')[1]) // key: hello, value: the value of hello
 * await plugin.close()
 * ```
 */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- whatever the guest passes
export type HostFunction = (context: CallContext, ...args: any[]) => unknown

/** Host functions by namespace and name. The namespaces `env` and `extism:host/user` are equivalent. */
export type HostFunctions = Record<string, Record<string, HostFunction>>

/** The options of `createPlugin`. */
export interface PluginOptions extends ManifestOptions {
  /**
   * The plugin's name in errors, as `error.plugin`.
   * @defaultValue the name of its main module, or that module's file without `.wasm`, or 'main'
   */
  name?: string
  /**
   * Allows the plugin to import WASI (preview 1). It still has no files, no environment and no output, unless
   * `allowedPaths`, `wasi` and `enableWasiOutput` provide them.
   * @defaultValue false
   */
  useWasi?: boolean
  /**
   * The destination of the plugin's standard output and error. `true` is those of this process, `false` discards
   * them, and `'logger'` sends each line to the plugin's logger, at the levels info and error. See
   * docs/reference/wasi.md.
   * @defaultValue false, or true if the environment variable `EXTISM_ENABLE_WASI_OUTPUT` has a value
   */
  enableWasiOutput?: boolean | 'logger'
  /** The plugin's arguments and environment, up to 64 KiB together. Both are empty by default. */
  wasi?: { args?: string[], env?: Record<string, string> }
  /**
   * Host functions in JavaScript. They override host functions of this library with the same name. The functions of
   * Extism's kernel (`extism:host/env`) cannot be overridden.
   */
  functions?: HostFunctions
  /**
   * The schema of the plugin's functions, for `plugin.exports`: a parsed schema of XTP (`v1-draft`), or a JSON Schema
   * whose properties are the functions, each with the properties `input` and `output`. Functions that the plugin does
   * not have are an error.
   */
  schema?: object
  /**
   * The destination of the plugin's log messages. If a guest writes faster than its messages are read, messages
   * beyond 4 MiB are dropped, and the logger gets a warning with their number.
   * @defaultValue console
   */
  logger?: Logger
  /**
   * The lowest level of log messages to pass on. The guest can read it.
   * @defaultValue 'silent'
   */
  logLevel?: LogLevel
  /**
   * The store that the guest reads with `hostMemoryGet` and the `hostStore…` functions. Plugins with the same store
   * see each other's changes. By default the guest may only read; a `StoreAccess` allows more, or less. If the store
   * fails or is closed, `hostMemoryGet` rejects the plugin's call with the store's code; the other functions return
   * an error to the guest.
   * @defaultValue a new empty store
   */
  store?: MemoryStore | Store | StoreAccess
  /**
   * The maximum number of instances, each with its own thread, from 1 to 1,024. With one, each call sees the plugin's
   * state as the previous call left it; with more, each instance has its own state.
   *
   * The first instance starts with the plugin. Another starts when there are more unfinished calls than instances; no
   * call waits for it. If it cannot start, no call fails, and the others keep serving. It is retried when calls need
   * it, after a pause of 100 ms that doubles with each failure, up to a minute.
   * @defaultValue 1
   */
  instances?: number
  /**
   * Starts all instances before `createPlugin` resolves. The first calls then find them ready, and `createPlugin`
   * rejects if one of them cannot start.
   * @defaultValue false
   */
  eager?: boolean
  /**
   * The maximum number of unfinished calls, running or queued, from 1 to 4,294,967,295. Another call rejects with
   * `QUEUE_FULL`.
   * @defaultValue 10000
   */
  maxQueue?: number
  /**
   * The maximum size of the inputs of all queued calls, in bytes. A call that would exceed it rejects with
   * `QUEUE_FULL`. An input of any size may wait if no other call does.
   * @defaultValue 67108864 (64 MiB)
   */
  maxQueueBytes?: number
  /**
   * The lifetime of an instance's state.
   *
   * - `'instance'`: an instance serves one call after the other, and keeps its state between them.
   * - `'call'`: each call gets a fresh instance, so that no data of a request can reach the next one. Instances are
   *   made in the background, after the result has been delivered; each call costs an instantiation and the plugin's
   *   initialization. See docs/explanation/performance.md.
   * @defaultValue 'instance'
   */
  isolation?: 'instance' | 'call'
  /**
   * Starts instances from a snapshot of the state after the plugin's initialization, which then runs only once.
   * With `isolation: 'call'`, instances can then be reset in place: a call of a plugin in Go costs a thirtieth.
   *
   * The first start does not wait for the snapshot: a thread takes it while instances without it serve calls
   * (`stats().snapshot` is `'pending'`). Later instances start from it. The compile cache keeps it for later starts,
   * and `precompile` also stores it there.
   *
   * All instances share the data that the initialization has read: its random numbers (a hash seed, `math/rand`; but
   * not those that calls request), and the time of the snapshot. The logger gets a warning about that when the
   * snapshot is taken. If the initialization calls host functions, uses files or changes tables, there is no
   * snapshot: `stats().snapshot` is `'unsupported'`, the logger gets the reason, and the plugin starts normally. See
   * docs/explanation/isolation.md.
   * @defaultValue false
   */
  snapshot?: boolean
  /**
   * Replaces an instance after this many calls, from 1 to 2⁵³ − 1, which resets the guest's state. The new instance
   * is made between two calls, which wait at most for its initialization. If the initialization fails, the old
   * instance serves as many calls again. An instance whose guest leaks memory is replaced even without this option,
   * before its memory is full.
   * @defaultValue no limit
   */
  maxCalls?: number
  /**
   * Replaces an instance that is older than this, in milliseconds from 1 to 2⁵³ − 1. That happens after the first
   * call that ends later, as with `maxCalls`; an idle instance is not replaced.
   * @defaultValue no limit
   */
  maxAgeMs?: number
  /**
   * The fuel of a call, from 1 to 2⁵³ − 1: about one unit for each WebAssembly instruction, the same in each run. A
   * call that uses it up rejects with `FUEL_EXHAUSTED`, and its instance is replaced. The initialization of an
   * instance gets the same amount. Counting fuel slows guests down.
   * @defaultValue no limit
   */
  fuel?: number
  /**
   * Cancels the opening of the plugin: `createPlugin` rejects with the signal's reason at once, even if the compiler
   * still runs. It has no effect on an open plugin.
   */
  signal?: AbortSignal
  /**
   * The time limit for opening the plugin, in milliseconds from 1 to 2,147,483,647. It covers fetching, compiling,
   * and the initialization of the instances that `createPlugin` waits for. After that, `createPlugin` rejects with
   * `TIMEOUT`; a running compilation continues in the background, and its result is discarded.
   *
   * `timeoutMs` does not limit the opening: a call may have to end within 50 ms while a module that is not in the
   * compile cache takes seconds to compile.
   * @defaultValue no limit
   */
  openTimeoutMs?: number
  /**
   * The maximum size of an output in bytes, from 1 to 4,294,967,295. A larger output is not copied, and the call
   * rejects with `OUTPUT_TOO_LARGE`.
   * @defaultValue 134217728 (128 MiB)
   */
  maxOutputBytes?: number
  /**
   * The mechanism that interrupts a call when it is aborted or exceeds its time limit. Both stop any guest.
   *
   * - `'page'`: each loop and each function reads a page of memory, which an interruption makes inaccessible. Guests
   *   run at almost full speed.
   * - `'epoch'`: each loop and each function compares a counter, which makes loops up to two times slower.
   * @defaultValue 'page' on Linux on x64, 'epoch' elsewhere
   */
  interruption?: 'page' | 'epoch'
  /**
   * The runtime of the plugin. `'extism'` is the reference: the official `extism` crate, with the same host
   * functions, queue and errors. Use it to find out whether a problem comes from this library's own runtime. Only use
   * it with plugins you trust, because one that forges memory blocks can crash the process. It is slower to start and
   * to call.
   *
   * It does not support `precompile`, nor the options `functions`, `isolation: 'call'`, `fuel`, `interruption`,
   * `allowedHosts`, `wasi`, `enableWasiOutput` and `compileCache`: they reject with `UNSUPPORTED`, as does a plugin
   * that calls a host function during its initialization. The initialization is limited to 30 s, whatever `timeoutMs`
   * is, and is not interrupted: one that never ends keeps its thread busy.
   * @defaultValue 'wasmtime'
   */
  runtime?: 'wasmtime' | 'extism'
  /**
   * Allows the plugin to read the headers of the responses to its HTTP requests.
   * @defaultValue false
   */
  allowHttpResponseHeaders?: boolean
  /**
   * Keeps compiled modules on disk, so that later starts take milliseconds. `true` uses the default directory if it
   * is usable, `false` turns the cache off, and an object configures it.
   *
   * Without this option, the environment variable `EXTISM_HOST_CACHE_DIR` names the directory, or turns the cache off
   * if it is empty or `off`.
   * @defaultValue true
   */
  compileCache?: boolean | CompileCacheOptions
  /**
   * The function that fetches plugins from URLs; for example, to send a header: `(url, init) => fetch(url, { ...init,
   * headers })`. `init.signal` is aborted when the opening ends early (`signal`, `openTimeoutMs`). Plugins' own
   * requests do not use it, so the combination with `allowedHosts` is rejected with `INVALID_ARGUMENT`.
   * @defaultValue the global `fetch`
   */
  fetch?: typeof globalThis.fetch
  /** Accepted for compatibility with the JavaScript SDK, without effect: plugins always run on their own threads. */
  runInWorker?: boolean
  /** Accepted for compatibility with the JavaScript SDK, without effect: no memory is shared with workers. */
  sharedArrayBufferSize?: number
  /**
   * Accepted for compatibility with the JavaScript SDK, without effect: there are no workers. `resourceLimits` is
   * rejected with `INVALID_ARGUMENT`, because it would not limit anything; use `memory.maxPages`.
   */
  nodeWorkerArgs?: { resourceLimits?: undefined, [key: string]: unknown }
}

/** The JavaScript SDK's name of `PluginOptions`. */
export type ExtismPluginOptions = PluginOptions
/** The JavaScript SDK's name of `CallContext`. */
export type CurrentPlugin = CallContext

/** The capabilities of this host, under the JavaScript SDK's names. */
export interface Capabilities {
  /** Host functions may be asynchronous. */
  readonly supportsJSPromiseInterface: boolean
  /** `TextDecoder` and `TextEncoder` accept shared memory. */
  readonly allowSharedBufferCodec: boolean
  /** Manifests may name modules by path. */
  readonly manifestSupportsPaths: boolean
  /** Requests of plugins are subject to a browser's cross-origin checks. */
  readonly crossOriginChecksEnforced: boolean
  /** Plugins can access the file system. */
  readonly fsAccess: boolean
  /** Plugins can run off the event loop: here they always do. */
  readonly hasWorkerCapability: boolean
  /** Plugins may use WASI preview 1. */
  readonly supportsWasiPreview1: boolean
  /** Calls can have a time limit. */
  readonly supportsTimeouts: boolean
  /** The environment variable `EXTISM_ENABLE_WASI_OUTPUT` is set and not empty. */
  readonly extismStdoutEnvVarSet: boolean
}

/** The capabilities of this host. */
export const CAPABILITIES: Capabilities

/** An export of a module, as `WebAssembly.Module.exports()` describes it. */
export interface ModuleExportDescriptor {
  /** The name of the export or import. */
  name: string
  /** The kind of the export or import. */
  kind: 'function' | 'table' | 'memory' | 'global'
}

/** An import of a module, as `WebAssembly.Module.imports()` describes it. */
export interface ModuleImportDescriptor extends ModuleExportDescriptor {
  /** The namespace, or the name of another module. */
  module: string
}

/** Options of one call. */
export interface CallOptions {
  /**
   * Cancels the call when it is aborted: a queued call never starts; a running call is interrupted, and its instance
   * replaced. The call rejects with `signal.reason`.
   */
  signal?: AbortSignal
  /** The time limit of this call in milliseconds, instead of the plugin's `timeoutMs`. */
  timeoutMs?: number
  /** The destination of this call's log messages, instead of the plugin's `logger`. The plugin's `logLevel` applies. */
  logger?: Logger
}

/** Options of one synchronous call. */
export interface CallSyncOptions {
  /** The time limit of this call in milliseconds, instead of the plugin's `timeoutMs`. */
  timeoutMs?: number
  /** The destination of this call's log messages, instead of the plugin's `logger`. The plugin's `logLevel` applies. */
  logger?: Logger
}

/** A store with the permissions that a plugin's guests have in it. */
export interface StoreAccess {
  /**
   * The store.
   * @defaultValue a new empty store
   */
  store?: MemoryStore | Store
  /**
   * Restricts the guest to the keys with this prefix, up to 1,024 bytes of UTF-8. It is added to each key that the
   * guest passes, and removed from each key that the guest gets.
   * @defaultValue ''
   */
  prefix?: string
  /**
   * Whether guests may also change the store: `'write'` includes reading.
   * @defaultValue 'read'
   */
  access?: 'read' | 'write'
  /**
   * The maximum size of a value that a guest sets, in bytes, from 1 to 2³² − 1.
   * @defaultValue 1048576 (1 MiB)
   */
  maxValueBytes?: number
  /**
   * The maximum number of keys under the prefix: a guest cannot add a key beyond it, whoever set the others. Keys are
   * counted when a guest adds the first, and again when the limit seems to be reached, at most once a second. Other
   * writers that add keys under the same prefix meanwhile may exceed it.
   * @defaultValue no limit
   */
  maxKeys?: number
}

/** Counters since the plugin was opened, and its current state. */
export interface PluginStats {
  /** The number of calls that have ended. */
  calls: {
    /** Calls that resolved. */
    succeeded: number
    /** Calls that rejected, by code, including refused (`QUEUE_FULL`, `CLOSED`) and aborted (`CANCELED`) ones. */
    failed: Partial<Record<ErrorCode | 'CANCELED', number>>
  }
  /** Calls that wait for an instance. */
  queued: number
  /** Instances that run a call. */
  busy: number
  /** Current instances. */
  instances: number
  /** Current instances that wait for a call. */
  ready: number
  /**
   * Instances that have been made and initialized. With `isolation: 'call'`, an instance that was reset in place
   * counts under `replaced.isolation` only.
   */
  made: number
  /** Calls that found no instance ready, and waited in the queue. */
  waited: number
  /**
   * Instances that were replaced, by reason. No call fails because of `memory` (it had nearly reached its limit),
   * `descriptors` (it kept too many files open), `isolation`, `calls` (`maxCalls`) and `age` (`maxAgeMs`).
   */
  replaced: Record<'trap' | 'outOfMemory' | 'fuelExhausted' | 'interrupted' | 'hostFunctionError' | 'exited' | 'memory' | 'descriptors' | 'isolation' | 'calls' | 'age' | 'internal', number>
  /** Threads that are stuck in host calls which no interruption reaches. */
  abandonedThreads: number
  /**
   * The state of the snapshot: `'none'` without the option `snapshot`, `'pending'` until the first snapshot has
   * been taken, `'taken'`, or `'unsupported'` if the plugin does not allow one.
   */
  snapshot: 'none' | 'pending' | 'taken' | 'unsupported'
  /** Identifies the plugin's code: 16 hexadecimal digits that change with any of its modules. */
  version: string
  /**
   * The memory of all instances together, in bytes: what each had after its last call. `0` with the runtime `extism`.
   */
  memoryBytes: number
  /** The size of the compiled code, in bytes. `0` with the runtime `extism`. */
  codeBytes: number
  /** Operations of the plugin's guests on its store. */
  store: {
    /** Keys that guests looked up. */
    reads: number
    /** Keys that guests looked up and that had a value. */
    hits: number
    /** Successful changes. */
    writes: number
    /** Refused and failed operations, by code; `CANCELED` if the guest's call ended while it waited for the store. */
    failed: Partial<Record<ErrorCode | 'CANCELED', number>>
  }
  /**
   * Operations of the plugin's guests on connections of `extism-host/connect`, by connection, operation and outcome: `OK`, or
   * the code that the guest was told. Those on connections that do not exist are under the empty name.
   */
  connectors: Record<string, Record<string, Record<string, number>>>
}

/**
 * The message about a call on the tracing channel `extism-host:call` of `node:diagnostics_channel`. It completes as the
 * call goes on.
 * @example
 * ```js
 * const { tracingChannel } = require('node:diagnostics_channel')
 *
 * tracingChannel('extism-host:call').subscribe({
 *   asyncEnd ({ plugin, function: name, queueMs, runMs }) { console.log(plugin, name, queueMs, runMs) }
 * })
 * ```
 */
export interface CallTrace {
  /** The plugin's name. */
  plugin: string
  /** The version of its code, as in `stats()`. */
  version: string
  /** The function that is called. */
  function: string
  /** The length of the input, in bytes. */
  inputBytes: number
  /** When the call started, in milliseconds since 1970. */
  startTime: number
  /** A subscriber of `start` may set it: the guest's HTTP requests carry it as their header `traceparent`. */
  traceparent?: string
  /** The time that the call waited for an instance, in milliseconds. Set before the promise settles. */
  queueMs?: number
  /** The time that it ran, in milliseconds; `undefined` if it never started. */
  runMs?: number
  /** The number of operations beyond the first 128, which are not published. */
  droppedOperations?: number
  /** The output. */
  result?: PluginOutput | null
  /** The reason of a rejection. */
  error?: unknown
}

/** The message about a host function in JavaScript, on the tracing channel `extism-host:host-function`. */
export interface HostFunctionTrace {
  /** The message about the call; `undefined` during an initialization, or if nobody listens to calls. */
  call?: CallTrace
  /** The plugin's name. */
  plugin: string
  /** The version of its code; `undefined` while the plugin opens. */
  version?: string
  /** The namespace of the function. */
  namespace: string
  /** The name of the function. */
  function: string
  /** A subscriber of `start` may set it, to run the function in a context of its own. It must return what `work` returns. */
  around?: <T>(work: () => T) => T
  /** The value that the function returned. */
  result?: unknown
  /** The error that it threw. */
  error?: unknown
}

/** The common part of the messages about a guest's operations. They are published when the call has ended. */
export interface OperationTrace {
  /** The message about the call. */
  call: CallTrace
  /** The plugin's name. */
  plugin: string
  /** The version of its code. */
  version: string
  /** When the operation started, in milliseconds since 1970. */
  startTime: number
  /** The duration, in milliseconds. */
  durationMs: number
  /** Why it failed: the code of a store's error, or the message about a request without a response. */
  error?: string
}

/** The message about an operation on the plugin's store, on the channel `extism-host:store`. */
export interface StoreOperationTrace extends OperationTrace {
  /** The host function, such as `hostStoreGet`. */
  function: string
  /** The kind of store. */
  system: 'memory' | 'redb' | 'redis'
}

/** The message about a guest's HTTP request, on the channel `extism-host:http`. */
export interface HttpRequestTrace extends OperationTrace {
  /** The method. */
  method: string
  /** The URL, without query and fragment. */
  url: string
  /** The status of the response; `undefined` if there was none. */
  status?: number
}

/** The message about a reload in a Fastify app, on the tracing channel `extism-host:reload`. */
export interface ReloadTrace {
  /** The plugin's name in the app. */
  plugin: string
  /** The version of the code that served before. */
  version: string
  /** The version of the code that serves afterwards; `undefined` if the reload failed. */
  newVersion?: string
  /** Why the reload failed. */
  error?: unknown
}

/** The stable codes of errors. docs/reference/errors.md has the cause and the remedy of each. */
export type ErrorCode =
  /** The plugin's file, or the directory of a store's file, does not exist or cannot be read. */
  | 'FILE_NOT_FOUND'
  /** The plugin or its manifest cannot be fetched. */
  | 'FETCH_FAILED'
  /** The bytes are not a WebAssembly module that can run here. */
  | 'INVALID_WASM'
  /** The module does not have the manifest's hash. */
  | 'HASH_MISMATCH'
  /** The modules import something that nobody provides. */
  | 'MISSING_IMPORT'
  /** Modules of the manifest only pass an import on to one another, in a circle. */
  | 'CIRCULAR_LINKING'
  /** A module uses a name that begins with `extism-host:`. */
  | 'RESERVED_NAME'
  /** `precompile` has no directory to keep the compiled code in, or it does not fit. */
  | 'CACHE_UNAVAILABLE'
  /** The plugin has no such function, or the function takes arguments. */
  | 'FUNCTION_NOT_FOUND'
  /** The plugin reported an error, returned a code other than 0, or exited with one. */
  | 'PLUGIN_ERROR'
  /**
   * The plugin did what WebAssembly forbids, or reached `unreachable`, as a panic does. Its instance has been
   * replaced.
   */
  | 'TRAP'
  /**
   * The call or the initialization took longer than `timeoutMs`, and its instance has been replaced; or the plugin
   * was not opened within `openTimeoutMs`.
   */
  | 'TIMEOUT'
  /** The output is longer than `maxOutputBytes`. */
  | 'OUTPUT_TOO_LARGE'
  /** A host function failed, which ended the call. Its instance has been replaced. */
  | 'HOST_FUNCTION_ERROR'
  /** The plugin needed more memory than its limit. Its instance has been replaced. */
  | 'OUT_OF_MEMORY'
  /** The call used up its `fuel`. Its instance has been replaced. */
  | 'FUEL_EXHAUSTED'
  /** `maxQueue` calls are unfinished, or the inputs of waiting calls have reached `maxQueueBytes`. */
  | 'QUEUE_FULL'
  /** All threads of the plugin are stuck in host calls that do not return. */
  | 'UNAVAILABLE'
  /** A `CallContext` was used after its host function had returned, or after its call had ended. */
  | 'CONTEXT_ENDED'
  /** The plugin's variables cannot hold another value. */
  | 'VARIABLES_FULL'
  /** A call would wait forever: for something that only this thread can do, or for itself. */
  | 'WOULD_DEADLOCK'
  /**
   * In `stats()`, metrics and logs only: the call was aborted. The call itself rejects with the reason of its
   * signal.
   */
  | 'CANCELED'
  /** No store has the scheme of the URL. */
  | 'NO_SUCH_STORE'
  /** The store rejected the credentials, its file is not accessible, or the plugin may not write. */
  | 'ACCESS_DENIED'
  /** The store cannot be reached, or did not answer in time. It may have done the operation. */
  | 'STORE_UNAVAILABLE'
  /** The value is larger than the store, or `maxValueBytes`, allows. */
  | 'VALUE_TOO_LARGE'
  /** The store, its disk, or the plugin's part of it (`maxKeys`) is full. */
  | 'STORE_FULL'
  /** The file is damaged, or is not a store. */
  | 'STORE_DAMAGED'
  /** A new version of a plugin failed its `smoke` call. The old version keeps serving. */
  | 'SMOKE_FAILED'
  /** `extism-host/fastify` is registered in this scope already. */
  | 'ALREADY_REGISTERED'
  /** An argument or option is not what the function takes. The error is a `TypeError`. */
  | 'INVALID_ARGUMENT'
  /**
   * The plugin or the store is closed; or the call had not ended when the time of `close({ timeoutMs })` was over.
   */
  | 'CLOSED'
  /** This library, or the plugin's `runtime`, does not support the operation. */
  | 'UNSUPPORTED'
  /** The process may not have more threads, address space, memory mappings or file descriptors. */
  | 'OUT_OF_RESOURCES'
  /** A defect in this library. */
  | 'INTERNAL'

/** All error codes, each under its own name: `ErrorCode.TIMEOUT` is `'TIMEOUT'`. */
export const ErrorCode: { readonly [Code in ErrorCode]: Code }

/**
 * The class of all errors of this library, for `instanceof`. An error with the code `INVALID_ARGUMENT` is also a
 * `TypeError`.
 *
 * @example
 * ```js
 * try {
 *   await createPlugin('missing.wasm')
 * } catch (error) {
 *   if (!(error instanceof PluginError)) throw error
 *   console.log(error.code) // FILE_NOT_FOUND
 *   console.log(error.docs.split('#')[1]) // file_not_found
 * }
 * ```
 */
export class PluginError extends Error {
  private constructor ()
  /** The stable code, one of `ErrorCode`. */
  code: ErrorCode
  /** The URL of the code's documentation, with causes and remedies. Printing or logging the error does not show it. */
  readonly docs: string
  /** In the error of a call: the plugin's `name`, or the name or file of its main module. */
  plugin?: string
  /** In the error of a call: the function that was called. */
  function?: string
  /**
   * In a `PLUGIN_ERROR`: the code that the function returned, or that the plugin exited with. 0 if the plugin
   * reported its error in another way; with `runtime: 'extism'` also if it did both.
   */
  returnCode?: number
  /** In a `TRAP`: the guest's stack of functions, innermost first; at most 32. */
  wasmBacktrace?: string[]
}

/**
 * The output of a plugin's function, as a read-only DataView.
 *
 * `buffer` holds this output and nothing else; for a short output it is a copy, made on first use.
 */
export class PluginOutput<Json = any> extends DataView<ArrayBuffer> {
  private constructor (buffer: ArrayBuffer)
  /** Decodes the output as UTF-8. Invalid bytes become U+FFFD. */
  text (): string
  /** The same as `text()`. */
  string (): string
  /**
   * Parses the output as JSON.
   * @throws a `SyntaxError` if it is not valid JSON
   */
  json (): Json
  /**
   * Returns the output's bytes.
   *
   * `bytes().buffer` holds them and nothing else, so that passing it on never exposes the outputs of other calls.
   * Short outputs share memory, so they are copied: 0.1 µs for up to 64 bytes and about 1 µs for more, while a call
   * takes 2 µs (32 in flight) to 10 µs. Outputs from 1 KiB on have memory of their own and are not copied. `text()`,
   * `json()` and the methods of a DataView never copy.
   */
  bytes (): Uint8Array
  /** The same as `buffer`. */
  arrayBuffer (): ArrayBuffer
}

/**
 * A host function's access to the guest that called it: the function's first argument.
 *
 * All methods throw `CONTEXT_ENDED` after the function has returned or its call has ended. Reading the blocks of
 * arguments (up to 64 KiB together) is free; any other method takes a few microseconds, in which the event loop waits
 * for the guest's thread.
 */
export class CallContext {
  private constructor ()
  /** Returns the `hostContext` that was passed to the plugin's call. */
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- whatever the caller passed
  hostContext<T = any> (): T
  /** The plugin's `logLevel`. */
  readonly logLevel: LogLevel
  /**
   * Aborted when the call ends before this host function has returned or settled: with the reason of the call's own signal if
   * that was aborted, otherwise with the call's error, such as `TIMEOUT` or `CLOSED`. An initialization that takes too long, or
   * whose plugin is not opened in time or is closed, aborts it likewise. It stays unchanged once the host function has
   * returned; read for the first time after that, it is aborted with `CONTEXT_ENDED`.
   */
  readonly signal: AbortSignal
  /**
   * Allocates a block of zeroed memory in the plugin.
   * @param size the size in bytes
   * @returns the block's offset, or 0 for an empty one
   * @throws `OUT_OF_MEMORY` if it does not fit
   */
  alloc (size: bigint | number): bigint
  /**
   * Copies a string or bytes into a new block.
   * @param content the content of the block; a string is stored as UTF-8
   * @returns the block's offset, or 0 for an empty one
   * @throws `OUT_OF_MEMORY` if it does not fit
   */
  store (content: string | Bytes): bigint
  /**
   * Reads a block.
   * @param offset the offset at which the block starts
   * @returns a copy of the block, or `null` if no block starts there
   */
  read (offset: bigint | number): PluginOutput | null
  /**
   * Returns the length of a block.
   * @param offset the offset at which the block starts
   * @returns the length in bytes, or 0 if no block starts there
   */
  length (offset: bigint | number): bigint
  /**
   * Makes the plugin's call fail with `PLUGIN_ERROR` once the guest has returned.
   * @param error the error or its message; without it, a previous error is removed
   */
  setError (error?: string | Error | null): void
  /**
   * Reads a variable of the plugin.
   * @returns a copy of the value, or `null` if the variable is not set
   */
  getVariable (name: string): PluginOutput | null
  /**
   * Sets a variable of the plugin.
   * @throws `VARIABLES_FULL` if it exceeds `memory.maxVarBytes`
   */
  setVariable (name: string, value: string | Bytes): void
  /** Deletes a variable of the plugin. */
  deleteVariable (name: string): void
}

/** The name of a function of `Functions`. */
export type FunctionName<Functions> = Extract<keyof Functions, string>
/** The input of a function, by its schema; `undefined` if it has none. */
export type FunctionInput<Functions, Name extends FunctionName<Functions>> = Functions[Name] extends { input: infer Input } ? Input : undefined
/** The output of a function, by its schema; `undefined` if it has none. */
export type FunctionOutput<Functions, Name extends FunctionName<Functions>> = Functions[Name] extends { output: infer Output } ? Output : undefined

type CallInput<Functions, Name extends FunctionName<Functions>> = unknown extends Functions
  ? string | Bytes | null
  : FunctionInput<Functions, Name> extends string ? FunctionInput<Functions, Name> | Bytes : string | Bytes | null
type CallJson<Functions, Name extends FunctionName<Functions>> = unknown extends Functions
  ? any
  : FunctionOutput<Functions, Name> extends string | Bytes | undefined ? any : FunctionOutput<Functions, Name>

/** The functions of a plugin, each with its input and output by the schema: see `Plugin.exports`. */
export type PluginExports<Functions> = {
  readonly [Name in FunctionName<Functions>]: (...parameters: undefined extends FunctionInput<Functions, Name>
    ? [input?: FunctionInput<Functions, Name>, hostContext?: unknown, options?: CallOptions | null]
    : [input: FunctionInput<Functions, Name>, hostContext?: unknown, options?: CallOptions | null]
  ) => Promise<FunctionOutput<Functions, Name>>
}

/**
 * An open plugin, made by `createPlugin`.
 *
 * `Functions` has the input and the output of each function, for example
 * `{ greet: { input: { name: string }, output: string } }`. `extism-host types` writes such an interface from a schema.
 */
export class Plugin<Functions extends object = any> {
  private constructor ()
  /**
   * The functions of the option `schema`. Each takes its input and resolves to its output by the schema: JSON for
   * objects, arrays, numbers and booleans, text for strings, bytes for `buffer`; `contentType` overrides that. Beside
   * the input, they take the host context and the options of `call`, and reject with its errors.
   *
   * The types are not checked when the program runs; routes of `extism-host/fastify` validate inputs by the schema.
   *
   * @throws `INVALID_ARGUMENT` if the plugin was opened without `schema`
   *
   * @example
   * ```js
   * const schema = { exports: { say_hello: { input: { type: 'string' }, output: { type: 'string' } } } }
   * const plugin = await createPlugin('plugins/say-hello/say-hello.wasm', { useWasi: true, schema })
   * const greeting = await plugin.exports.say_hello('Jane')
   * console.log(greeting.split('\n')[0]) // 👋 Hello Jane
   * await plugin.close()
   * ```
   */
  readonly exports: PluginExports<Functions>
  /**
   * Runs a function of the plugin on one of its threads, while the event loop keeps turning.
   *
   * @param name the name of an exported function
   * @param input the input, which is copied; empty by default
   * @param hostContext the value that host functions in JavaScript get from `context.hostContext()`. If it looks like
   * `CallOptions`, with a `signal` or `timeoutMs`, the call is rejected as a likely mistake, unless a fourth argument
   * is passed, which may be `null`
   * @param options a signal, a time limit and a logger for this call
   * @returns the output, or `null` if the function has not set one
   * @throws the reason of `options.signal` if that is aborted
   * @throws the error of a host function in JavaScript that threw or rejected
   * @throws `FUNCTION_NOT_FOUND` or `INVALID_ARGUMENT` if the call is wrong
   * @throws `PLUGIN_ERROR` if the plugin reported an error or returned a code other than 0
   * @throws `TRAP`, `TIMEOUT`, `FUEL_EXHAUSTED`, `OUT_OF_MEMORY`, `OUTPUT_TOO_LARGE` or `HOST_FUNCTION_ERROR` if the
   * call was ended; see `ErrorCode`
   * @throws `QUEUE_FULL`, `UNAVAILABLE` or `CLOSED` if the plugin cannot accept the call
   * @throws the code of the store, such as `STORE_UNAVAILABLE`, if `hostMemoryGet` failed
   *
   * @example
   * ```js
   * const store = new MemoryStore([['hello', 'Hello!'], ['message', 'Bye!']])
   * const plugin = await createPlugin('plugins/say-hello/say-hello.wasm', { useWasi: true, store })
   * const output = await plugin.call('say_hello', 'Jane', undefined, { timeoutMs: 1_000 })
   * console.log(output.text().split('\n')[2]) // key: message, value: Bye!
   * await plugin.close()
   * ```
   */
  call<T = unknown, Name extends FunctionName<Functions> = FunctionName<Functions>> (
    name: Name, input?: CallInput<Functions, Name>, hostContext?: T, options?: CallOptions | null
  ): Promise<PluginOutput<CallJson<Functions, Name>> | null>
  /**
   * Runs a function of the plugin and blocks the event loop until it returns: for scripts and tests.
   *
   * Host functions in JavaScript must be synchronous. Without `timeoutMs`, it blocks for as long as the plugin runs.
   *
   * @param name the name of an exported function
   * @param input the input, which is copied; empty by default
   * @param hostContext the value that host functions get from `context.hostContext()`
   * @param options a time limit and a logger for this call
   * @returns the output, or `null` if the function has not set one
   * @throws the same errors as `call`
   * @throws `WOULD_DEADLOCK` if a host function in JavaScript returns a promise, or the call would wait forever
   */
  callSync<Name extends FunctionName<Functions>> (
    name: Name, input?: CallInput<Functions, Name>, hostContext?: unknown, options?: CallSyncOptions | null
  ): PluginOutput<CallJson<Functions, Name>> | null
  /** Returns counters and the plugin's current state. It is cheap to call. */
  stats (): PluginStats
  /**
   * Resolves to whether the plugin has a callable function of that name.
   * @throws `CLOSED` if the plugin is closed
   */
  functionExists (name: string): Promise<boolean>
  /**
   * Lists the exports of the main module, as compiled by its author.
   * @throws `CLOSED` if the plugin is closed
   */
  getExports (): Promise<ModuleExportDescriptor[]>
  /**
   * Lists the imports of the main module, as compiled by its author.
   * @throws `CLOSED` if the plugin is closed
   */
  getImports (): Promise<ModuleImportDescriptor[]>
  /**
   * Always rejects: the plugin runs outside of JavaScript, so there is no `WebAssembly.Instance`.
   * @throws `UNSUPPORTED`
   */
  getInstance (): Promise<never>
  /** Returns whether any call is unfinished: queued, running, or aborted and not yet stopped. */
  isActive (): boolean
  /**
   * Clears the plugin's variables.
   *
   * The memory that passes inputs and outputs is reset before each call anyway. The instances' own memories keep
   * their content.
   * @returns `true`, or `false` if a call is unfinished and nothing was cleared
   * @throws `CLOSED` if the plugin is closed
   */
  reset (): Promise<boolean>
  /**
   * Closes the plugin gracefully: rejects new calls with `CLOSED`, waits for accepted calls, then frees everything.
   *
   * It can be called again: after `close()`, `close({ timeoutMs })` limits the remaining time.
   * @param options `timeoutMs` is the time for accepted calls in milliseconds, from 0 to 2,147,483,647. After that,
   * running calls are interrupted, queued ones never start, and all reject with `CLOSED`. Without it, a call that
   * never ends keeps the plugin open
   */
  close (options?: { timeoutMs?: number } | null): Promise<void>
  /** The same as `close({ timeoutMs: 10_000 })`, for `await using`. */
  [Symbol.asyncDispose] (): Promise<void>
}

/**
 * A `Map` in Rust that JavaScript fills and plugins read with `hostMemoryGet`.
 *
 * It works like a `Map`, with strings as keys and strings or bytes as values, in insertion order. A plugin sees a
 * change with its next host call. Readers never block. `openStore(store)` returns a `Store` over it.
 *
 * @example
 * ```js
 * const store = new MemoryStore([['greeting', 'hello']], { maxBytes: 2 ** 20 })
 * store.set('session', 'abc', { ttlMs: 60_000 })
 * console.log(store.get('greeting'), store.size) // hello 2
 * ```
 */
export class MemoryStore implements Iterable<[string, string | Buffer]> {
  // Private, so that a Map does not match this type: plugins accept only stores made by this class.
  #private
  /**
   * Creates a store.
   * @param entries the initial entries
   * @param options the limit of the store's size
   * @throws `INVALID_ARGUMENT` if an entry or an option is not valid
   * @throws `VALUE_TOO_LARGE` if an entry alone exceeds `maxBytes`
   */
  constructor (entries?: Iterable<readonly [string, string | Bytes]> | null, options?: MemoryStoreOptions | null)
  /**
   * Returns the store of that name, or creates it.
   *
   * All threads of the process share it, so that plugins in several worker threads see each other's changes. It lives
   * until no thread and no plugin uses it.
   */
  static named (name: string): MemoryStore
  /** The number of keys. */
  readonly size: number
  /**
   * Sets a key, until it is deleted or for `ttlMs`. Bytes are copied.
   * @param key a string of well-formed Unicode
   * @param value a string of well-formed Unicode, or bytes
   * @param options the lifetime of the entry
   * @throws `INVALID_ARGUMENT` if the key or the value is not valid
   * @throws `VALUE_TOO_LARGE` if the entry alone exceeds `maxBytes`
   */
  set (key: string, value: string | Bytes, options?: EntryOptions | null): this
  /**
   * Returns the value of a key.
   * @returns the string if a string was set; a copy as a Buffer if bytes were set, or if a `Store` set the key;
   * `undefined` if the key does not exist
   */
  get (key: string): string | Buffer | undefined
  /** Returns whether a key exists. */
  has (key: string): boolean
  /** Removes a key, and returns whether it existed. */
  delete (key: string): boolean
  /** Removes all keys. */
  clear (): void
  /** Calls `callback` for each entry, like `Map.prototype.forEach`. */
  forEach (callback: (value: string | Buffer, key: string, store: this) => void, thisArgument?: unknown): void
  /** Iterates the keys that exist when the iteration begins, in the order in which they were first set. */
  keys (): IterableIterator<string>
  /** Iterates the values, in the order of `keys`. */
  values (): IterableIterator<string | Buffer>
  /** Iterates the entries, in the order of `keys`. */
  entries (): IterableIterator<[string, string | Buffer]>
  /** The same as `entries()`. */
  [Symbol.iterator] (): IterableIterator<[string, string | Buffer]>
  readonly [Symbol.toStringTag]: string
}

/** Options of a store in memory. */
export interface MemoryStoreOptions {
  /**
   * The maximum size of the store in bytes, from 1 to 2⁵³ − 1: keys, values, and 200 bytes for each entry. To make
   * space for a new entry, the store evicts approximately the least recently used ones.
   * @defaultValue no limit
   */
  maxBytes?: number
}

/** Options of a store. A store rejects options that do not apply to it. */
export interface StoreOptions extends MemoryStoreOptions {
  /**
   * The size of the cache in bytes.
   *
   * For `redb:`, the part of the file that is kept in memory, from 1 to 2⁵³ − 1. To open a file again that is already
   * open in this process, omit it or pass the same value.
   *
   * On Redis, the cache of keys and values, plus 200 bytes for each entry. 0 turns the cache off.
   * @defaultValue 67108864 (64 MiB)
   */
  cacheBytes?: number
  /**
   * On Redis: the time limit for connecting and for each reply, in milliseconds, from 1 to 2³¹ − 1. It includes the
   * time to transfer large values.
   * @defaultValue 1000
   */
  timeoutMs?: number
  /**
   * For `rediss:` and `rediss+cluster:`: the certificate authorities to trust, as PEM.
   * @defaultValue the authorities that Mozilla trusts
   */
  ca?: string | Bytes
  /**
   * On Redis: whether `openStore` rejects with `STORE_UNAVAILABLE` if a server cannot be reached. With `false`, the
   * store opens and connects in the background; until it is connected, each operation fails with that code.
   * @defaultValue true
   */
  required?: boolean
}

/** Options of an entry of a store. */
export interface EntryOptions {
  /**
   * The lifetime of the entry in milliseconds, from 1 to 2⁵³ − 1. Without it, the entry stays until it is deleted,
   * even if the key had a lifetime before.
   */
  ttlMs?: number
}

/** A change of a key. */
export type StoreChange =
  /** The key was set. `value` is present if the store reports values. */
  | { type: 'set', key: string, value?: Buffer }
  /** The key was deleted, expired or was evicted. */
  | { type: 'delete', key: string, value?: undefined }
  /** Changes may have been missed, because they were read too slowly or the connection was lost. */
  | { type: 'lost', key?: undefined, value?: undefined }

/**
 * A key-value store of any kind, opened by `openStore`.
 *
 * Keys are strings of well-formed Unicode, up to 64 KiB in UTF-8; the empty string is allowed. Values are bytes;
 * strings are stored as UTF-8. Arguments and results are copied. Operations run on threads of this library (up to 16
 * per process), in any order unless you await each one. A pending operation keeps the process alive; an open store
 * does not.
 *
 * Every method can reject with `INVALID_ARGUMENT`, `CLOSED`, `STORE_UNAVAILABLE`, `STORE_DAMAGED` and
 * `ACCESS_DENIED`; methods that set values also with `VALUE_TOO_LARGE` and `STORE_FULL`. After `STORE_UNAVAILABLE`,
 * the operation may have been done; any other failed operation has changed nothing.
 *
 * @example
 * ```js
 * const store = await openStore('memory:')
 * await store.set('user:jane', '{"visits":1}')
 * console.log(String(await store.get('user:jane'))) // {"visits":1}
 * console.log(await store.increment('visits')) // 1
 * for await (const key of store.keys({ prefix: 'user:' })) console.log(key) // user:jane
 * await store.close()
 * ```
 */
export class Store implements AsyncDisposable {
  private constructor ()
  /** Resolves to the value of a key, or `undefined` if the key does not exist. */
  get (key: string): Promise<Buffer | undefined>
  /** Sets a key, until it is deleted or for `ttlMs`. */
  set (key: string, value: string | Bytes, options?: EntryOptions | null): Promise<void>
  /** Removes a key, and resolves to whether it existed. */
  delete (key: string): Promise<boolean>
  /** Resolves to whether a key exists. */
  has (key: string): Promise<boolean>
  /**
   * Iterates the keys that begin with `prefix`, or all keys. They are fetched on demand, a thousand at a time.
   *
   * A key that exists during the whole iteration appears exactly once; a key that is set or removed meanwhile may be
   * missing. In memory and in a file, keys are ordered by their UTF-8. On Redis, a key may appear twice if many
   * others are removed meanwhile.
   * @throws `STORE_UNAVAILABLE` also if the servers of a Redis cluster change meanwhile
   */
  keys (options?: { prefix?: string } | null): AsyncGenerator<string, void, undefined>
  /**
   * Atomically adds to a number that is stored as decimal digits. A missing key counts as 0; an existing one keeps
   * its lifetime.
   * @param key the key of the number
   * @param delta the number to add, 1 by default
   * @returns the sum, as a bigint if a number would not be exact
   * @throws `INVALID_ARGUMENT` if the value is not a whole number of 64 bits, or the sum would not be one
   */
  increment (key: string, delta?: number | bigint): Promise<number | bigint>
  /**
   * Atomically sets or removes a key if it has the expected value.
   * @param key the key to change
   * @param expected the expected value; `undefined` if the key must not exist
   * @param value the new value; `undefined` removes the key
   * @param options the lifetime of the entry
   * @returns whether the key had the expected value, and so was changed
   */
  compareAndSwap (key: string, expected: string | Bytes | undefined, value: string | Bytes | undefined, options?: EntryOptions | null): Promise<boolean>
  /** Resolves to the values of several keys, in the order of the keys. */
  getMany (keys: Iterable<string>): Promise<Array<Buffer | undefined>>
  /** Sets several keys. If that fails in a store on other machines, some keys may have been set. */
  setMany (entries: Iterable<readonly [string, string | Bytes]>, options?: EntryOptions | null): Promise<void>
  /**
   * Removes several keys, and resolves to the number that existed. If that fails in a store on other machines, some
   * may have been removed.
   */
  deleteMany (keys: Iterable<string>): Promise<number>
  /**
   * Watches the keys that begin with `prefix`, or all keys, and iterates their changes by anyone. Changes of the same
   * key are in order. All operations that this Store starts after the call of `watch` are included.
   *
   * The iteration ends with `break` or `return()`, or when the store is closed. On Redis, it reports no values, and
   * may merge changes of a key in quick succession into the last one.
   *
   * Up to 1,024 unread changes, or 4 MiB of them, are queued. Later ones are dropped, which a change of the type
   * `lost` reports. Waiting for a change keeps the process alive.
   * @param prefix the prefix of the keys, '' by default
   * @param options `signal` ends the iteration when it is aborted
   * @throws the reason of `signal` when that is aborted
   */
  watch (prefix?: string, options?: { signal?: AbortSignal } | null): AsyncIterableIterator<StoreChange> & AsyncDisposable
  /**
   * Closes the store once its pending operations have ended. Later operations reject with `CLOSED`, including those
   * of plugins. A MemoryStore or a named store stays usable through other references. It can be called again.
   */
  close (): Promise<void>
  /** The same as `close()`, for `await using`. */
  [Symbol.asyncDispose] (): Promise<void>
  readonly [Symbol.toStringTag]: string
}

/**
 * Opens a store by its URL, or returns a `Store` over a `MemoryStore`.
 *
 * | URL | store |
 * |---|---|
 * | `memory:` | a new store in memory |
 * | `memory:name` | the store in memory of that name, the same as `MemoryStore.named(name)` |
 * | `redb:./data.redb`, `redb:/path/of/data.redb` | a durable store in a file |
 * | `redis://user:password@host:port/database`, `rediss://…` | a Redis server, without and with TLS |
 * | `redis+cluster://user:password@host:port,host:port`, `rediss+cluster://…` | a Redis cluster, by some of its servers |
 *
 * A missing file is created, accessible only by its owner. Everyone in this process who opens the same file shares
 * one store; other processes cannot open it until all have closed it. In the path, write `%`, `?` and `#` as `%25`,
 * `%3F` and `%23`. Error messages never contain the password.
 *
 * @param source the URL, or a MemoryStore
 * @param options options of the store; those that do not apply to it are rejected
 * @throws `NO_SUCH_STORE` if no store has the URL's scheme
 * @throws `INVALID_ARGUMENT` if the URL or an option is not valid
 * @throws `FILE_NOT_FOUND` if the directory of the file is missing
 * @throws `ACCESS_DENIED` if the file is not accessible, or a server rejects the credentials
 * @throws `STORE_UNAVAILABLE` if another process has the file open, a server does not respond, or its certificate is
 * not valid
 * @throws `STORE_FULL` if the disk is full
 * @throws `STORE_DAMAGED` if the file is damaged or not a store
 *
 * @example
 * ```js
 * const store = await openStore('memory:shared')
 * await store.set('key', 'value', { ttlMs: 60_000 })
 * console.log(MemoryStore.named('shared').has('key')) // true
 * await store.close()
 * ```
 */
export function openStore (source: string | URL | MemoryStore, options?: StoreOptions | null): Promise<Store>

/** A store for Keyv, made by `keyvAdapter`. Its methods are those that Keyv calls. */
export interface KeyvStoreAdapter {
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- as Keyv has it
  opts: any
  namespace?: string | undefined
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- as Keyv has it
  get (key: string): Promise<any>
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- as Keyv has it
  getMany (keys: string[]): Promise<any[]>
  set (key: string, value: unknown, ttl?: number): Promise<boolean>
  setMany (entries: Array<{ key: string, value: unknown, ttl?: number }>): Promise<boolean[]>
  delete (key: string): Promise<boolean>
  deleteMany (keys: string[]): Promise<boolean>
  has (key: string): Promise<boolean>
  hasMany (keys: string[]): Promise<boolean[]>
  clear (): Promise<void>
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- as Keyv has it
  iterator (namespace?: string): AsyncGenerator<any, void, undefined>
}

/**
 * Adapts a store for Keyv 5 and 6.
 *
 * Create one adapter for each Keyv, because Keyv sets its namespace on it. Keyv puts the namespace before its keys,
 * so several can share a store. Lifetimes become those of the store. Keyv must serialize values to strings, as it
 * does by default. It does not close the store.
 *
 * @param store the store that Keyv will use
 * @throws `INVALID_ARGUMENT` if the argument is not a store
 *
 * @example
 * ```js
 * const { default: Keyv } = await import('keyv')
 * const sessions = new Keyv({ store: keyvAdapter(new MemoryStore()), namespace: 'sessions' })
 * await sessions.set('jane', { visits: 1 }, 60_000)
 * console.log(await sessions.get('jane')) // { visits: 1 }
 * ```
 */
export function keyvAdapter (store: Store | MemoryStore): KeyvStoreAdapter

/**
 * Loads a plugin and starts its first instance, off the event loop.
 *
 * Close the plugin when you no longer need it. Modules are compiled once and cached on disk: see the option
 * `compileCache`.
 *
 * @param source a path, a URL, bytes, a Response or a manifest, or a promise of one
 * @param options limits, permissions, host functions, and the number of instances
 * @returns the open plugin
 * @throws `INVALID_ARGUMENT` if the source, the manifest or an option is not valid
 * @throws `FILE_NOT_FOUND` or `FETCH_FAILED` if a module cannot be loaded
 * @throws `HASH_MISMATCH` or `INVALID_WASM` if a module is not the expected one, or not WebAssembly that can run here
 * @throws `MISSING_IMPORT`, `CIRCULAR_LINKING` or `RESERVED_NAME` if the modules cannot be linked
 * @throws `OUT_OF_MEMORY` or `OUT_OF_RESOURCES` if an instance cannot be made
 * @throws `TIMEOUT` if it takes longer than `openTimeoutMs`
 * @throws the reason of `options.signal` if that is aborted
 * @throws the errors of `Plugin.call`, if the plugin's initialization fails
 *
 * @example
 * ```js
 * const plugin = await createPlugin('plugins/say-hello/say-hello.wasm', { useWasi: true, timeoutMs: 1_000, instances: 2 })
 * const output = await plugin.call('say_hello', 'Jane')
 * console.log(output.text().split('\n')[0]) // 👋 Hello Jane
 * await plugin.close()
 * ```
 */
export function createPlugin<Functions extends object = any> (
  source: ManifestLike | PromiseLike<ManifestLike>, options?: PluginOptions
): Promise<Plugin<Functions>>
export { createPlugin as newPlugin }
export default createPlugin

/**
 * Compiles a plugin into the compile cache, so that `createPlugin` later takes milliseconds, also in other processes.
 *
 * It runs off the event loop, and runs nothing of the plugin, except its initialization with the option `snapshot`.
 * Pass the options that the plugin will be opened with: `useWasi`, `wasi`, `enableWasiOutput`, `memory.maxPages`,
 * `functions`, `snapshot`, and the presence of `fuel` change the compiled code, and `compileCache` is the
 * directory. The others are checked and make no difference. It resolves at once if the code is already cached.
 *
 * @param source the source, as for `createPlugin`
 * @param options the options that the plugin will be opened with
 * @throws the errors of `createPlugin`
 * @throws `INVALID_ARGUMENT` if `compileCache` is `false`
 * @throws `CACHE_UNAVAILABLE` if there is no usable cache, or it cannot store the code: it exceeds
 * `compileCache.maxBytes`, or the disk is full. The message says which
 */
export function precompile (source: ManifestLike | PromiseLike<ManifestLike>, options?: PluginOptions): Promise<void>
