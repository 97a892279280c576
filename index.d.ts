/// <reference types="node" />
/// <reference lib="esnext.disposable" />

/** Bytes in any of JavaScript's forms. They are copied; shared memory is copied before it is read. */
export type Bytes = ArrayBufferView | ArrayBuffer | SharedArrayBuffer

/** The sources of a module: give one of them. */
interface WasmSources {
  /** A file. */
  path: string
  /** The bytes, or base64, as JSON has them. */
  data: Bytes | string
  /**
   * An http: or https: URL, which is fetched, redirects included. Its `content-type` must be `application/wasm` or
   * `application/octet-stream`, or missing. Or a `file:` URL, which is a path.
   */
  url: string | URL
  /** A response that has not been read. */
  response: Response
}

type WasmFrom<Key extends keyof WasmSources> =
  Pick<WasmSources, Key> & { [Other in Exclude<keyof WasmSources, Key>]?: undefined }

export type ManifestWasmPath = WasmFrom<'path'>
export type ManifestWasmData = WasmFrom<'data'>
export type ManifestWasmUrl = WasmFrom<'url'>
export type ManifestWasmResponse = WasmFrom<'response'>

/**
 * @deprecated A `WebAssembly.Module` does not give out its bytes, so it cannot be loaded:
 * `INVALID_ARGUMENT`. Pass what it was compiled from.
 */
export interface ManifestWasmModule { module: object }

/** One module of a manifest: its source, name and hash. */
export type ManifestWasm = (ManifestWasmPath | ManifestWasmData | ManifestWasmUrl | ManifestWasmResponse) & {
  /** The name under which the plugin's other modules import it. */
  name?: string
  /** The SHA-256 that the module must have, in hexadecimal; else `HASH_MISMATCH`. */
  hash?: string
}

/** The same in the spelling of Extism's JSON manifests: `maxPages` and `max_pages`. */
type SnakeCase<Key extends string> = Key extends `${infer Head}${infer Tail}`
  ? `${Head extends Lowercase<Head> ? Head : `_${Lowercase<Head>}`}${SnakeCase<Tail>}`
  : Key
type InBothSpellings<T> = T & { [Key in keyof T as SnakeCase<Key & string>]: T[Key] }

interface MemoryLimits {
  /**
   * By how many pages of 64 KiB all memories of one instance may grow together, from 1 to 65,536: those of its
   * modules, and the one that holds inputs, outputs and the values of host functions. Those values may also have
   * that many pages together at any moment of a call. More is `OUT_OF_MEMORY`.
   *
   * The initial sizes of the modules' memories do not count; they may be up to 4,096 pages together, or `maxPages`
   * if that is more. Without `maxPages`, all memories may have 4,096 pages (256 MiB) together, initial sizes
   * included.
   */
  maxPages?: number
  /**
   * The bytes that the values of the plugin's variables may have together; 0 turns variables off. A value that does
   * not fit ends the call with `HOST_FUNCTION_ERROR`. Names may take as much again, 48 bytes for each variable
   * included, and at least 64 KiB. All instances of a plugin share one set.
   * @default 1048576 (1 MiB)
   */
  maxVarBytes?: number
  /**
   * The bytes that the body of a response to an HTTP request of the plugin may have, from 1 to 4,294,967,295.
   * Beyond that, reading stops, and the call rejects with `HOST_FUNCTION_ERROR`. The plugin needs memory for the
   * body, too: see `maxPages`.
   * @default 52428800 (50 MiB)
   */
  maxHttpResponseBytes?: number
}

/** Limits of one instance's memory. */
export type MemoryOptions = InBothSpellings<MemoryLimits>

/** The configuration that a plugin reads. */
export type PluginConfig = Record<string, string>
export interface PluginConfigLike { [key: string]: string }

/** A directory of this machine that a plugin may use, and what it calls it. */
export interface AllowedPath {
  host: string
  guest: string
  /** @default false */
  readOnly?: boolean
}

interface CommonOptions {
  /** The configuration that the plugin reads. That of the options replaces the manifest's. */
  config?: PluginConfigLike
  /**
   * The milliseconds that a call may run, from 1 to 4,294,967,295; the time in the queue does not count. The
   * initialization of an instance has the same limit, and 30 s without one.
   * @default no limit
   */
  timeoutMs?: number | null
  /** Limits of memory. Each one of the options wins over the same one of the manifest. */
  memory?: MemoryOptions
  /**
   * The hosts that the plugin may send HTTP requests to: names, IP addresses, or patterns with `*` (any
   * number of characters, dots too), `?` (one character) and `[a-z]` or `[!a-z]` (one of a kind),
   * without scheme, port and path. Letter case makes no difference. Redirects are followed to such
   * hosts only. A request to any other ends the call with `HOST_FUNCTION_ERROR`.
   *
   * An entry that cannot match any host is refused with `INVALID_ARGUMENT`. See docs/reference/http.md.
   * @default [] (no hosts)
   */
  allowedHosts?: string[] | null
  /**
   * Directories of this machine that the plugin may use with WASI, and the names it sees: `{'/srv/data': '/data'}`,
   * with `ro:` before the first for read-only access, or a list. The JavaScript SDK has the opposite order;
   * docs/reference/wasi.md says when it is recognized.
   * @default {} (none)
   */
  allowedPaths?: Record<string, string> | AllowedPath[] | null
}

/** The options that a manifest may have, too, in camelCase or snake_case. The options win. */
export type ManifestOptions = InBothSpellings<CommonOptions>

/** A plugin of one or more modules. The main module is the one named `main`, else the last one without a name, else the last one. */
export interface Manifest extends ManifestOptions {
  wasm: ManifestWasm[]
}

/**
 * A plugin's source:
 *
 * - a manifest, or one as a string of JSON, which begins with `{`;
 * - the bytes of a module;
 * - an http: or https: URL, as a string or a URL: it is fetched, redirects are followed, and the `content-type`
 *   tells whether it is a manifest (`application/json`, `text/json`) or a module (`application/wasm`,
 *   `application/octet-stream`, or none);
 * - a `Response`, of which the same is true;
 * - a `file:` URL or, as any other string, a path of a module.
 *
 * A manifest from the network may not name files of this machine.
 */
export type ManifestLike = Manifest | Response | Bytes | string | URL
export type PluginSource = ManifestLike

/** The directory of compiled modules. Its content is executed. */
export interface CompileCacheOptions {
  /**
   * A directory that belongs to this user and that nobody else has rights to (mode 700). It is created if it is
   * missing. An unusable directory is an error, `INVALID_ARGUMENT`, that says why. It may be read-only, once a
   * plugin with the same options has been there.
   * @default the directory of `EXTISM_HOST_CACHE_DIR`, or else `extism-host` in the user's cache directory; if that
   * cannot be used, plugins are compiled anew
   */
  directory?: string
  /**
   * The bytes that it may have, from 1 on. This is a soft limit: Wasmtime checks it when it adds something, at most
   * once an hour, and if it is exceeded, removes the least recently used modules until 70 % of the limit are left.
   * @default 536870912 (512 MiB)
   */
  maxBytes?: number
}

/** The level of a message. */
export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent'

/**
 * The destination of a plugin's messages: the console, one of pino's loggers, or anything with methods of these
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
 * A host function in JavaScript. Arguments of type i64 are bigints (usually offsets of blocks), others numbers. The
 * returned value, or the value of the returned promise, is converted as WebAssembly does it; if the guest expects
 * an i64, it may also be a string or bytes, which are put into a block.
 *
 * The guest waits on its thread; the event loop does not. If the function throws or its promise rejects, the
 * plugin's call rejects with that value; the instance is replaced, so the state of its guest is lost, and the
 * plugin's variables stay. The function runs in the asynchronous context (`AsyncLocalStorage`) of the plugin's
 * call.
 *
 * A function that awaits a call of its own plugin needs another instance for it. If all instances wait for such
 * calls, the inner call rejects with `WOULD_DEADLOCK`.
 */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- whatever the guest passes
export type HostFunction = (context: CallContext, ...args: any[]) => unknown

/** Host functions by namespace and name. Those of `env` and of `extism:host/user` stand in for each other. */
export type HostFunctions = Record<string, Record<string, HostFunction>>

export interface PluginOptions extends ManifestOptions {
  /**
   * The plugin's name in errors, as `error.plugin`.
   * @default the name of its main module, or that module's file without `.wasm`, or 'main'
   */
  name?: string
  /**
   * Whether the plugin may import WASI (preview 1). It gets no files, no
   * environment and no output, unless the options below and `allowedPaths` say otherwise.
   * @default false
   */
  useWasi?: boolean
  /**
   * The destination of the plugin's standard output and error: those of this process, nowhere, or the plugin's
   * logger, line by line, at the levels info and error. See docs/reference/wasi.md.
   * @default false, or true if the environment variable `EXTISM_ENABLE_WASI_OUTPUT` has a value
   */
  enableWasiOutput?: boolean | 'logger'
  /** The plugin's arguments and environment, 64 KiB together. Both are empty by default. */
  wasi?: { args?: string[], env?: Record<string, string> }
  /**
   * Host functions in JavaScript. They replace those of this library with the same name; the kernel's
   * (`extism:host/env`) cannot be replaced.
   */
  functions?: HostFunctions
  /**
   * The destination of the plugin's messages. If a guest writes faster than its messages are read, messages beyond
   * 4 MiB are dropped, and the logger gets a warning with their number.
   * @default console
   */
  logger?: Logger
  /**
   * The lowest level of messages to pass on; the guest can read it.
   * @default 'silent'
   */
  logLevel?: LogLevel
  /**
   * The store of `hostMemoryGet` and the `hostStore…` functions, shared by reference. The guest may read it; an
   * object may allow more, or less. If the store fails or is closed, `hostMemoryGet` rejects the plugin's call with
   * the store's code; the other functions tell the guest.
   * @default an empty store of the plugin's own
   */
  store?: MemoryStore | Store | StoreAccess
  /**
   * The number of instances, each with its own thread, from 1 to 1,024. With one, each call sees the plugin's state
   * as the call before left it; with more, each instance has its own state.
   *
   * The first instance starts with the plugin. Another starts when more calls are unfinished than there are
   * instances; no call waits for it. If it cannot start, no call fails: the others keep serving, and it is retried
   * when calls need it after a pause, of 100 ms first and twice as much after each failure, up to a minute.
   * @default 1
   */
  instances?: number
  /**
   * Whether `createPlugin` starts all instances and waits for them. The first calls then find them ready, and
   * `createPlugin` rejects if one of them cannot start.
   * @default false
   */
  eager?: boolean
  /**
   * The number of calls that may be unfinished at once, running ones included, from 1 to 4,294,967,295. One more
   * rejects with `QUEUE_FULL`.
   * @default 10000
   */
  maxQueue?: number
  /**
   * The bytes that the inputs of waiting calls may have together; a call that would exceed it rejects with
   * `QUEUE_FULL`. If no other call waits, one may wait whatever its input has.
   * @default 67108864 (64 MiB)
   */
  maxQueueBytes?: number
  /**
   * With `'instance'`, an instance serves one call after the other and keeps its state between them. With `'call'`,
   * each call gets a fresh instance, made in the background: nothing of one request is left for the next. That
   * costs each call an instantiation and the plugin's initialization, after its result has been delivered (see
   * docs/explanation/performance.md).
   * @default 'instance'
   */
  isolation?: 'instance' | 'call'
  /**
   * Starts instances from the state after the plugin's initialization, which runs once instead of in each instance.
   * With `isolation: 'call'`, instances can then be reset in place: a call of a plugin in Go costs a thirtieth.
   *
   * The first start does not wait for the snapshot: a thread takes it while instances without it serve calls
   * (`stats().snapshot` is `'pending'`). Instances made afterwards start from it. The compile cache keeps it for
   * later starts; `precompile` puts it there, too.
   *
   * All instances begin with what the initialization has read: the same random numbers (a hash seed, `math/rand`;
   * not those that the guest requests in its calls), and the time of the snapshot; the logger gets a warning of
   * that when the snapshot is taken. A plugin whose initialization calls host functions or uses files, or that
   * changes its tables, has no snapshot: `stats().snapshot` is `'unsupported'` then, the logger gets the reason,
   * and the plugin starts normally. See docs/explanation/isolation.md.
   * @default false
   */
  snapshot?: boolean
  /**
   * The number of calls that an instance serves before another replaces it, from 1 to 2⁵³ − 1. The state of its
   * guest starts anew. The new instance is made between two calls, and neither waits for more than its
   * initialization. If the initialization fails, the old instance serves as many calls again. An instance whose
   * guest leaks memory is replaced without this option, before its memory is full.
   * @default no limit
   */
  maxCalls?: number
  /**
   * The age of an instance, in milliseconds, after which another replaces it, from 1 to 2⁵³ − 1. That happens after
   * the first call that ends later, as with `maxCalls`. An instance that waits for calls is not replaced meanwhile.
   * @default no limit
   */
  maxAgeMs?: number
  /**
   * The fuel of a call, from 1 to 2⁵³ − 1: about one unit for each WebAssembly instruction, the same in each run. A
   * call that uses it up rejects with `FUEL_EXHAUSTED`, and its instance is replaced. The initialization of an
   * instance has as much. Counting slows guests down.
   * @default no limit
   */
  fuel?: number
  /**
   * Ends the opening of the plugin: `createPlugin` rejects with the signal's reason at once, even if the compiler
   * still runs. It has no effect on an open plugin.
   */
  signal?: AbortSignal
  /**
   * The milliseconds that the opening may take, from 1 to 2,147,483,647: fetching, compiling, and the
   * initialization of the instances that it waits for. After that, `createPlugin` rejects with `TIMEOUT`, even if
   * the compiler still runs: it goes on in the background, and its result is not used.
   *
   * `timeoutMs` does not limit the opening: a call may have to end within 50 ms while a module that is not in the
   * compile cache takes seconds to compile.
   * @default no limit
   */
  openTimeoutMs?: number
  /**
   * The bytes that an output may have, from 1 to 4,294,967,295. A longer one is not copied, and the call rejects
   * with `OUTPUT_TOO_LARGE`.
   * @default 134217728 (128 MiB)
   */
  maxOutputBytes?: number
  /**
   * How a call is interrupted when it is aborted or its time is over. Both ways stop any guest.
   *
   * - `'page'`: each loop and each function reads a page of memory, which an interruption makes
   *   inaccessible. Guests run at almost full speed.
   * - `'epoch'`: they compare a counter instead, which slows loops down, up to two times.
   * @default 'page' on Linux on x64, 'epoch' elsewhere
   */
  interruption?: 'page' | 'epoch'
  /**
   * The runtime of the plugin. `'extism'` is the reference: the official `extism` crate, with the same host
   * functions, queue and errors. Use it to find out whether a problem comes from this library's own runtime, and
   * only with plugins you trust: one that forges memory blocks can crash the process. It is slower to start and to
   * call.
   *
   * It does not support these options, and rejects with `UNSUPPORTED` if they are given: `functions`, `isolation:
   * 'call'`, `fuel`, `interruption`, `allowedHosts`, `wasi`, `enableWasiOutput`, `compileCache`, nor `precompile`.
   * A plugin that calls a host function while it initializes itself is also `UNSUPPORTED`. Its initialization may
   * take 30 s, whatever `timeoutMs` is, and is not interrupted: one that never ends keeps its thread busy.
   * @default 'wasmtime'
   */
  runtime?: 'wasmtime' | 'extism'
  /**
   * Whether the plugin may read the headers of the responses to its HTTP requests.
   * @default false
   */
  allowHttpResponseHeaders?: boolean
  /**
   * Whether compiled modules are kept on disk, and in which directory: `false` keeps none, `true` uses the default
   * directory if one can be made.
   *
   * Without this option the environment variable `EXTISM_HOST_CACHE_DIR` decides: it names a directory, or is empty
   * or `off` for no cache.
   * @default true
   */
  compileCache?: boolean | CompileCacheOptions
  /**
   * The function that fetches plugins given as URLs; for example to send a header: `(url, init) => fetch(url, {
   * ...init, headers })`. `init.signal` is aborted when the opening ends early (`signal`, `openTimeoutMs`).
   * Requests of plugins do not use it: with `allowedHosts` it is `INVALID_ARGUMENT`.
   * @default the global `fetch`
   */
  fetch?: typeof globalThis.fetch
  /** Changes nothing: plugins always run on threads of their own. Known from the JavaScript SDK. */
  runInWorker?: boolean
  /** Changes nothing: nothing is shared with workers. Known from the JavaScript SDK. */
  sharedArrayBufferSize?: number
  /**
   * Changes nothing: there are no workers. Known from the JavaScript SDK. `resourceLimits` is
   * `INVALID_ARGUMENT`, since it would limit nothing; use `memory.maxPages`.
   */
  nodeWorkerArgs?: { resourceLimits?: undefined, [key: string]: unknown }
}

// Under the names that the JavaScript SDK has for them.
export type ExtismPluginOptions = PluginOptions
export type CurrentPlugin = CallContext

/** The capabilities of this host, under the JavaScript SDK's names. */
export interface Capabilities {
  /** Host functions may be asynchronous. */
  readonly supportsJSPromiseInterface: boolean
  /** `TextDecoder` and `TextEncoder` take shared memory. */
  readonly allowSharedBufferCodec: boolean
  /** Modules of a manifest may be given by their path. */
  readonly manifestSupportsPaths: boolean
  /** Requests of plugins are subject to the checks of a browser. */
  readonly crossOriginChecksEnforced: boolean
  /** There is a file system. */
  readonly fsAccess: boolean
  /** Plugins can run beside the event loop: here they always do. */
  readonly hasWorkerCapability: boolean
  /** Plugins may use WASI preview 1. */
  readonly supportsWasiPreview1: boolean
  /** Calls can have a time limit. */
  readonly supportsTimeouts: boolean
  /** The environment variable `EXTISM_ENABLE_WASI_OUTPUT` is set, and not empty. */
  readonly extismStdoutEnvVarSet: boolean
}

export const CAPABILITIES: Capabilities

/** Something that a module exports, as `WebAssembly.Module.exports()` describes it. */
export interface ModuleExportDescriptor {
  name: string
  kind: 'function' | 'table' | 'memory' | 'global'
}

/** Something that a module imports, as `WebAssembly.Module.imports()` describes it. */
export interface ModuleImportDescriptor extends ModuleExportDescriptor {
  /** The namespace, or the name of another module. */
  module: string
}

/** Options of one call. */
export interface CallOptions {
  /**
   * Ends the call when it is aborted: a waiting call never starts; a running one is interrupted and its instance
   * replaced. The call rejects with `signal.reason`.
   */
  signal?: AbortSignal
  /** The milliseconds that this call may run, instead of the plugin's `timeoutMs`. */
  timeoutMs?: number
  /** The destination of this call's messages, instead of the plugin's `logger`. The level is the plugin's. */
  logger?: Logger
}

/** Options of one synchronous call. */
export interface CallSyncOptions {
  /** The milliseconds that this call may run, instead of the plugin's `timeoutMs`. */
  timeoutMs?: number
  /** The destination of this call's messages, instead of the plugin's `logger`. The level is the plugin's. */
  logger?: Logger
}

/** The permissions of a plugin's guests in its store. */
export interface StoreAccess {
  /**
   * The store.
   * @default an empty store of the plugin's own
   */
  store?: MemoryStore | Store
  /**
   * Goes before each key that a guest names, and is removed from keys that it is told: the guest sees and reaches
   * no other keys. Up to 1,024 bytes of UTF-8.
   * @default ''
   */
  prefix?: string
  /**
   * `'write'` also lets guests change the store.
   * @default 'read'
   */
  access?: 'read' | 'write'
  /**
   * The bytes that a value may have that a guest sets, from 1 to 2³² − 1.
   * @default 1048576 (1 MiB)
   */
  maxValueBytes?: number
  /**
   * The number of keys that there may be under the prefix when a guest adds one, whoever set them. Keys are counted
   * when the first is added, and again when the limit seems to be reached, at most once a second; other writers
   * that add keys under the same prefix meanwhile may exceed it.
   * @default no limit
   */
  maxKeys?: number
}

/** Counters since the plugin was opened, and its present state. */
export interface PluginStats {
  /** Calls that have ended. */
  calls: {
    /** Those that had an output, an empty one included. */
    succeeded: number
    /** Those that failed, by code; those that were refused (`QUEUE_FULL`, `CLOSED`) or aborted (`CANCELED`) too. */
    failed: Partial<Record<ErrorCode | 'CANCELED', number>>
  }
  /** Calls that wait for an instance. */
  queued: number
  /** Instances that run a call. */
  busy: number
  /** Instances that there are. */
  instances: number
  /** Those of them that wait for a call. */
  ready: number
  /**
   * Instances that have been made and initialized. With `isolation: 'call'`, an instance that was put back in
   * place counts under `replaced.isolation` only.
   */
  made: number
  /** Calls that found no instance ready, and so waited in the queue. */
  waited: number
  /**
   * Instances that were replaced, by what ended them. No call fails for `memory` (it had nearly reached its
   * limit), `descriptors` (it kept too many files open), `isolation`, `calls` (`maxCalls`) and `age` (`maxAgeMs`).
   */
  replaced: Record<'trap' | 'outOfMemory' | 'fuelExhausted' | 'interrupted' | 'hostFunctionError' | 'exited' | 'memory' | 'descriptors' | 'isolation' | 'calls' | 'age' | 'internal', number>
  /** Threads that hang in host calls which no interruption reaches. */
  abandonedThreads: number
  /**
   * The state of the snapshot: `'none'` without the option `snapshot`, `'pending'` until the first snapshot has
   * been taken, `'taken'`, or `'unsupported'` if the plugin does not allow one.
   */
  snapshot: 'none' | 'pending' | 'taken' | 'unsupported'
  /** Operations of its guests on its store. */
  store: {
    /** Keys that were looked up. */
    reads: number
    /** Those of them that had a value. */
    hits: number
    /** Changes that were made. */
    writes: number
    /** Refused and failed operations, by code; `CANCELED` if the guest's call ended while it waited for the store. */
    failed: Partial<Record<ErrorCode | 'CANCELED', number>>
  }
}

/** The stable names of errors. docs/reference/errors.md has the cause and the remedy of each. */
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

/** All codes, each under its own name: `ErrorCode.TIMEOUT` is `'TIMEOUT'`. */
export const ErrorCode: { readonly [Code in ErrorCode]: Code }

/**
 * The class of all errors of this library, for `instanceof`. With the code `INVALID_ARGUMENT`, an error is a
 * `TypeError`, too.
 */
export class PluginError extends Error {
  private constructor ()
  code: ErrorCode
  /** The plugin that was called, if it is the error of a call: its option `name`, or what stands for it. */
  plugin?: string
  /** The function that was called, if it is the error of a call. */
  function?: string
  /**
   * Of a `PLUGIN_ERROR`: the code that the function returned, or that the plugin exited with. 0 if it reported its error
   * in another way; with `runtime: 'extism'` also if it did both.
   */
  returnCode?: number
  /** Of a `TRAP`: the guest's functions that were running, the innermost first; at most 32. */
  wasmBacktrace?: string[]
}

/**
 * A plugin's output: a read-only DataView. Its `buffer` holds this output and nothing else; where the
 * output is short, that is a copy, made when it is asked for.
 */
export class PluginOutput extends DataView<ArrayBuffer> {
  private constructor (buffer: ArrayBuffer)
  /** The output decoded as UTF-8; invalid bytes become U+FFFD. */
  text (): string
  /** The same as `text()`. */
  string (): string
  /** The output parsed as JSON. Throws a `SyntaxError` if it is not JSON. */
  json (): any
  /**
   * The output's bytes. `bytes().buffer` holds them and nothing else: short outputs share their memory with
   * others, so those are copied. That takes 0.1 µs for up to 64 bytes and about 1 µs for more, where a call takes 2 µs
   * (32 in flight) to 10 µs; it is the price of never handing other calls' outputs to whoever passes the buffer on.
   * `text()`, `json()` and the methods of a DataView copy nothing. Longer outputs (from 1 KiB on) have memory of
   * their own, which is not copied.
   */
  bytes (): Uint8Array
  /** The same as `buffer`. */
  arrayBuffer (): ArrayBuffer
}

/**
 * The guest of a host function's call, as the function's first argument. Using it after the function has returned,
 * or after its call was ended, throws `CONTEXT_ENDED`.
 *
 * Except for arguments (up to 64 KiB together), each use takes some microseconds, in which the event loop waits for
 * the guest's thread.
 */
export class CallContext {
  private constructor ()
  /** The value that was passed to the plugin's call as `hostContext`. */
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- whatever the caller passed
  hostContext<T = any> (): T
  /** The plugin's `logLevel`. */
  readonly logLevel: LogLevel
  /**
   * Makes a block of that many bytes, all zero, and returns its offset; 0 for an empty one. Throws `OUT_OF_MEMORY`
   * if it does not fit.
   */
  alloc (size: bigint | number): bigint
  /** Makes a block with this content, and returns its offset; 0 for an empty one. Throws as `alloc`. */
  store (content: string | Bytes): bigint
  /** A copy of the block that starts at the offset; `null` if no block starts there. */
  read (offset: bigint | number): PluginOutput | null
  /** The length of the block that starts at the offset; 0 if no block starts there. */
  length (offset: bigint | number): bigint
  /**
   * Makes the plugin's call fail with `PLUGIN_ERROR` and this message once the guest has returned. Without a
   * message, removes the error.
   */
  setError (error?: string | Error | null): void
  /** A copy of the plugin's variable of that name. */
  getVariable (name: string): PluginOutput | null
  /** Sets a variable. Throws `VARIABLES_FULL` if it exceeds `memory.maxVarBytes`. */
  setVariable (name: string, value: string | Bytes): void
  deleteVariable (name: string): void
}

/** A running plugin, made by `createPlugin`. */
export class Plugin {
  private constructor ()
  /**
   * Runs a function of the plugin on a thread of its own; the event loop goes on meanwhile.
   *
   * The input is copied. Without one the plugin gets an empty input. Resolves to `null` if the function has set no
   * output, and to an empty one if it has set that. Rejects with a `PluginError`, or with the reason of `options.signal`.
   *
   * `hostContext` is what host functions in JavaScript get from `context.hostContext()`. An object that looks like
   * options, with `signal` or `timeoutMs` and nothing else than `CallOptions` have, is refused there with
   * `INVALID_ARGUMENT`, unless there are `options` too, or `null`.
   */
  call<T = unknown> (name: string, input?: string | Bytes | null, hostContext?: T, options?: CallOptions | null): Promise<PluginOutput | null>
  /**
   * Runs a function of the plugin and waits for it: for scripts and tests. It blocks the event loop; without
   * `timeoutMs`, until the plugin returns. Returns and throws what `call` resolves to and rejects with. Host
   * functions in JavaScript must return at once; a promise is refused with `WOULD_DEADLOCK`.
   */
  callSync (name: string, input?: string | Bytes | null, hostContext?: unknown, options?: CallSyncOptions | null): PluginOutput | null
  /** Counters, and what the plugin does at this moment. Cheap. */
  stats (): PluginStats
  /** Whether the plugin has a function of that name that can be called. */
  functionExists (name: string): Promise<boolean>
  /** The exports of the main module, as its author wrote it. */
  getExports (): Promise<ModuleExportDescriptor[]>
  /** The imports of the main module, as its author wrote it. */
  getImports (): Promise<ModuleImportDescriptor[]>
  /**
   * Rejects with `UNSUPPORTED`: the plugin runs outside of JavaScript, so there is no
   * `WebAssembly.Instance`.
   */
  getInstance (): Promise<never>
  /** Whether any call is unfinished: it waits, runs, or has been aborted and not yet stopped. */
  isActive (): boolean
  /**
   * Forgets the plugin's variables and resolves to `true`; while a call is unfinished it does nothing
   * and resolves to `false`. The memory in which inputs and outputs are passed is reset before each
   * call anyway; what instances have in memories of their own stays.
   */
  reset (): Promise<boolean>
  /**
   * Refuses further calls with `CLOSED`, lets those that were accepted end, and frees everything.
   * Resolves when that is done; can be called again.
   *
   * With `timeoutMs` (from 0 to 2,147,483,647) calls have that many milliseconds to end. Those that are left are
   * interrupted, or never start, and are rejected with `CLOSED`. Without it, a call that never ends keeps the plugin
   * open. After `close()`, `close({ timeoutMs })` limits the time from then on.
   */
  close (options?: { timeoutMs?: number } | null): Promise<void>
  /** The same as `close({ timeoutMs: 10_000 })`, for `await using`. */
  [Symbol.asyncDispose] (): Promise<void>
}

/**
 * A map in Rust that JavaScript fills and plugins read with `hostMemoryGet`.
 *
 * It works as a `Map` does, insertion order included, with strings as keys and strings or bytes as values. The next
 * host call of each plugin that has the store sees a change. Readers never wait. `openStore(store)` gives it the
 * methods that all stores have.
 */
export class MemoryStore implements Iterable<[string, string | Buffer]> {
  // Not a Map: only a store made by this class can be given to a plugin.
  #private
  constructor (entries?: Iterable<readonly [string, string | Bytes]> | null, options?: MemoryStoreOptions | null)
  /**
   * The store of that name: the same for all threads of this process, so that plugins of several
   * worker threads read what any of them sets. It lasts for as long as any thread has it, or a plugin
   * with it.
   */
  static named (name: string): MemoryStore
  /** The number of keys. */
  readonly size: number
  /**
   * Sets a key, forever or for `ttlMs`. Bytes are copied. Strings must be well-formed Unicode. Throws
   * `VALUE_TOO_LARGE` if the entry alone exceeds `maxBytes`.
   */
  set (key: string, value: string | Bytes, options?: EntryOptions | null): this
  /**
   * The value of a key: a string if a string was set; a Buffer with a copy if bytes were set, or if a `Store` set
   * it.
   */
  get (key: string): string | Buffer | undefined
  has (key: string): boolean
  /** Removes a key, and says whether it was there. */
  delete (key: string): boolean
  clear (): void
  forEach (callback: (value: string | Buffer, key: string, store: this) => void, thisArgument?: unknown): void
  /** The keys that were there when the iteration began, in the order in which they were first set. */
  keys (): IterableIterator<string>
  values (): IterableIterator<string | Buffer>
  entries (): IterableIterator<[string, string | Buffer]>
  [Symbol.iterator] (): IterableIterator<[string, string | Buffer]>
  readonly [Symbol.toStringTag]: string
}

/** Options of a store in memory. */
export interface MemoryStoreOptions {
  /**
   * The bytes that the store may take, from 1 to 2⁵³ − 1: keys, values, and 200 bytes for each entry. To make space
   * for another entry, it evicts those that have not been read or set for longest, approximately.
   * @default no limit
   */
  maxBytes?: number
}

/** Options of a store. A store refuses options that it has no use for. */
export interface StoreOptions extends MemoryStoreOptions {
  /**
   * For `redb:`: the bytes of the file that are kept in memory, from 1 to 2⁵³ − 1. To open a file that is open in
   * this process already, leave it out or pass the same value.
   *
   * On Redis: the bytes that the cache of this store may take: keys, values, and 200 bytes for each entry. 0 turns
   * the cache off.
   * @default 67108864 (64 MiB)
   */
  cacheBytes?: number
  /**
   * On Redis: the milliseconds that a server may take to accept the connection, and to answer, from 1 to 2³¹ − 1.
   * Large values need the time in which they are sent.
   * @default 1000
   */
  timeoutMs?: number
  /**
   * With `rediss:` and `rediss+cluster:`: the authorities that may have issued a server's certificate, as PEM.
   * @default the authorities that Mozilla trusts
   */
  ca?: string | Bytes
  /**
   * On Redis: whether opening the store fails with `STORE_UNAVAILABLE` if a server cannot be reached. With `false`,
   * the store opens and connects in the background; until then, each use fails with that code.
   * @default true
   */
  required?: boolean
}

/** Options of an entry of a store. */
export interface EntryOptions {
  /**
   * The milliseconds after which the entry vanishes, from 1 to 2⁵³ − 1. Without it, the entry stays until it is
   * deleted, even if the key had a lifetime before.
   */
  ttlMs?: number
}

/** A change of a key. */
export type StoreChange =
  /** The key was set; `value` is there if the store can tell. */
  | { type: 'set', key: string, value?: Buffer }
  /** The key was removed: by somebody, because its time was over, or because it was evicted. */
  | { type: 'delete', key: string, value?: undefined }
  /** Changes may have been missed, because they were read too slowly or the connection was lost. */
  | { type: 'lost', key?: undefined, value?: undefined }

/**
 * A store of any kind, opened by `openStore`.
 *
 * Keys are strings of well-formed Unicode of up to 64 KiB in UTF-8; an empty one is allowed. Values are bytes; a
 * string is stored as UTF-8. Arguments and results are copied. Operations run on threads of this library (up to 16
 * in the process); operations that you do not await run in any order. A pending operation keeps the process alive;
 * an open store does not.
 *
 * All methods reject with a `PluginError`: `INVALID_ARGUMENT`, also for a key that is too long; `CLOSED`;
 * `VALUE_TOO_LARGE` and `STORE_FULL`; `STORE_UNAVAILABLE` if the store cannot be reached, or not in time: it may
 * have done the operation; `STORE_DAMAGED`; `ACCESS_DENIED`. Any other failed operation has changed nothing.
 */
export class Store implements AsyncDisposable {
  private constructor ()
  /** The value of a key. */
  get (key: string): Promise<Buffer | undefined>
  /** Sets a key, forever or for `ttlMs`. */
  set (key: string, value: string | Bytes, options?: EntryOptions | null): Promise<void>
  /** Removes a key, and resolves to whether it was there. */
  delete (key: string): Promise<boolean>
  has (key: string): Promise<boolean>
  /**
   * The keys that begin with `prefix` (all keys without it), fetched on demand, a thousand at a time. A key that
   * exists all the time comes once; one that is set or removed meanwhile may come or not. In memory and in a file
   * they come in the order of their UTF-8. On Redis a key may come twice if many others are removed meanwhile, and
   * `keys` rejects with `STORE_UNAVAILABLE` if the servers of a cluster change.
   */
  keys (options?: { prefix?: string } | null): AsyncGenerator<string, void, undefined>
  /**
   * Adds to a number that is stored as decimal digits, in one step, and resolves to the sum: a bigint if a number
   * would not be exact. A missing key counts as 0; an existing one keeps its lifetime. Rejects with
   * `INVALID_ARGUMENT` if the value is not a whole number of 64 bits, or the sum would not be.
   * @default delta 1
   */
  increment (key: string, delta?: number | bigint): Promise<number | bigint>
  /**
   * Sets a key if it has the expected value, and removes it if `value` is `undefined`. As `expected`, `undefined`
   * means that the key must not exist. This is one step: nobody changes the key in between. Resolves to whether the
   * key had the expected value.
   */
  compareAndSwap (key: string, expected: string | Bytes | undefined, value: string | Bytes | undefined, options?: EntryOptions | null): Promise<boolean>
  /** The values of keys, in their order. */
  getMany (keys: Iterable<string>): Promise<Array<Buffer | undefined>>
  /** Sets keys. If it fails in a store on other machines, some keys may have been set. */
  setMany (entries: Iterable<readonly [string, string | Bytes]>, options?: EntryOptions | null): Promise<void>
  /**
   * Removes keys, and resolves to the number that existed. If it fails in a store on other machines, some may have
   * been removed.
   */
  deleteMany (keys: Iterable<string>): Promise<number>
  /**
   * The changes of the keys that begin with `prefix`, whoever makes them, those of each key in order. They include
   * the effects of all operations of this Store after the call of `watch`. It ends when the store is closed or with
   * `return()` (as `break` does), and rejects with the reason of `signal` when that is aborted.
   *
   * On Redis, it may merge changes of a key that follow closely into the last, and it does not report values.
   *
   * Up to 1,024 unread changes, or 4 MiB of them, are kept. Later ones are dropped, and a change `lost` reports
   * that. Waiting for a change keeps the process alive.
   */
  watch (prefix?: string, options?: { signal?: AbortSignal } | null): AsyncIterableIterator<StoreChange> & AsyncDisposable
  /**
   * Closes the store once its pending operations have ended. Later operations are refused with `CLOSED`, those of
   * plugins included. A MemoryStore or a named store stays usable for everybody else who has it. Can be called
   * again.
   */
  close (): Promise<void>
  /** The same as `close()`, for `await using`. */
  [Symbol.asyncDispose] (): Promise<void>
  readonly [Symbol.toStringTag]: string
}

/**
 * Opens a store by its URL: `memory:` is a new one in memory, `memory:name` the one of that name that
 * `MemoryStore.named(name)` is, too; `redis://user:password@host:port/database` is on a Redis server, `rediss://`
 * with TLS; `redis+cluster://user:password@host:port,host:port` and `rediss+cluster://` on a Redis cluster, some of
 * whose servers are named. A MemoryStore gets the same methods.
 *
 * `redb:./data.redb`, or `redb:/path/of/data.redb`, is a durable store in a file. A missing file is created, for
 * its owner only. All in this process that open the file share one store; other processes are refused until all
 * have closed it. In the path, write `%`, `?` and `#` as `%25`, `%3F` and `%23`.
 *
 * Rejects with `NO_SUCH_STORE` if no store has the URL's scheme, and with `INVALID_ARGUMENT`. For a file also with
 * `FILE_NOT_FOUND` if its directory is missing, `ACCESS_DENIED`, `STORE_FULL`, `STORE_DAMAGED` if it is damaged or
 * not a store, and `STORE_UNAVAILABLE` if another process has it open. On Redis also with `STORE_UNAVAILABLE` if a
 * server does not answer, or its certificate is not valid, and with `ACCESS_DENIED` if it rejects the credentials.
 * Messages never contain the password.
 */
export function openStore (source: string | URL | MemoryStore, options?: StoreOptions | null): Promise<Store>

/** The result of `keyvAdapter`. */
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
 * Connects Keyv 5 and 6 to a store: `new Keyv({ store: keyvAdapter(store), namespace: 'sessions' })`. Keyv puts its
 * namespace before its keys, so several can share a store; lifetimes are the store's. Keyv must turn values into
 * strings, as it does by default. Keyv does not close the store.
 *
 * One adapter is for one Keyv, which tells it its namespace. Throws `INVALID_ARGUMENT` if the argument is not a
 * store.
 */
export function keyvAdapter (store: Store | MemoryStore): KeyvStoreAdapter

/**
 * Loads a plugin and starts its first instance, or all with `eager`, off the event loop. `source` may be a promise.
 *
 * Rejects with a `PluginError`: `INVALID_ARGUMENT`, `FILE_NOT_FOUND`, `FETCH_FAILED`, `INVALID_WASM`,
 * `HASH_MISMATCH`, `MISSING_IMPORT`, `CIRCULAR_LINKING`, `RESERVED_NAME` or `OUT_OF_MEMORY`; or with the error that
 * ended the plugin's initialization, as `call` does.
 */
export function createPlugin (source: ManifestLike | PromiseLike<ManifestLike>, options?: PluginOptions): Promise<Plugin>
export { createPlugin as newPlugin }
export default createPlugin

/**
 * Fills the compile cache with the code that `createPlugin` of the same source and options would compile, off the
 * event loop, so that it takes milliseconds later, in another process, too. Nothing of the plugin runs.
 *
 * Pass the options that the plugin will be opened with: `useWasi`, `wasi`, `enableWasiOutput`, `memory.maxPages`,
 * `functions`, and the presence of `fuel` change what is compiled, and `compileCache` says where it is kept. The
 * others are checked and make no difference. Resolves at once if everything is there already.
 *
 * Rejects as `createPlugin` does, with `INVALID_ARGUMENT` if `compileCache` is `false`, and with
 * `CACHE_UNAVAILABLE` if there is no cache otherwise (the default directory cannot be used, or
 * `EXTISM_HOST_CACHE_DIR` turns it off), or if it cannot keep the compiled code: it has more than
 * `compileCache.maxBytes`, or the disk is full. The message says which.
 */
export function precompile (source: ManifestLike | PromiseLike<ManifestLike>, options?: PluginOptions): Promise<void>
