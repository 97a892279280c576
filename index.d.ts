/// <reference types="node" />
/// <reference lib="esnext.disposable" />

/** Bytes in any of JavaScript's forms. They are copied; shared memory is copied before it is read. */
export type Bytes = ArrayBufferView | ArrayBuffer | SharedArrayBuffer

/** Where the bytes of a module can come from. */
interface WasmSources {
  /** A file. */
  path: string
  /** Bytes, or as JSON has them, base64. */
  data: Bytes | string
  /**
   * What is fetched: http: or https:. Redirects are followed; the `content-type` must be
   * `application/wasm` or `application/octet-stream`, or missing. Or a `file:` URL, which is a path.
   */
  url: string | URL
  /** What has been fetched already, and not been read. */
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

/** One module of a manifest: where it is, and what it is called. */
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
   * By how many pages of 64 KiB all memories of one instance may grow together, from 1 to 65,536:
   * those of its modules, and the one in which inputs, outputs and what host functions give are
   * passed. What is passed may have as many pages together, at any moment of a call. One more is
   * `OUT_OF_MEMORY`.
   *
   * What the modules' memories begin with is not counted, and may be up to 4,096 pages together, or
   * `maxPages` where that is more. Without `maxPages`, all memories may have 4,096 pages (256 MiB)
   * together, initial ones included.
   */
  maxPages?: number
  /**
   * How many bytes the values of the plugin's variables may have together; 0 to have no variables. A
   * value that does not fit ends the call with `HOST_FUNCTION_ERROR`. Names may take as much again, 48
   * bytes for each variable included, and at least 64 KiB. All instances of a plugin share one set.
   * @default 1048576 (1 MiB)
   */
  maxVarBytes?: number
  /**
   * How many bytes the body of a response to an HTTP request of the plugin may have, from 1 to
   * 4,294,967,295. When there are more, nothing further is read, and the call is rejected with
   * `HOST_FUNCTION_ERROR`. Beside `maxPages`, which the plugin needs to take the body in.
   * @default 52428800 (50 MiB)
   */
  maxHttpResponseBytes?: number
}

/** Limits of one instance's memory. */
export type MemoryOptions = InBothSpellings<MemoryLimits>

/** What a plugin reads as its configuration. */
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
  /** What the plugin reads as its configuration. That of the options takes the place of the manifest's. */
  config?: PluginConfigLike
  /**
   * How many milliseconds a call may run, from 1 to 4,294,967,295; the time in the queue does not
   * count. There is no limit without it. The initialization of an instance has the same limit, and
   * 30 s without one.
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
   * Directories of this machine that the plugin may use with WASI, and what it calls them:
   * `{'/srv/data': '/data'}`, with `ro:` before the first where it may only read, or as a list. The
   * JavaScript SDK's order is the other; docs/reference/wasi.md says when it is recognized.
   * @default {} (none)
   */
  allowedPaths?: Record<string, string> | AllowedPath[] | null
}

/** What a manifest and the options have in common, in camelCase or snake_case. The options win. */
export type ManifestOptions = InBothSpellings<CommonOptions>

/** A plugin of one or more modules. The main module is the one named `main`, else the last one without a name, else the last one. */
export interface Manifest extends ManifestOptions {
  wasm: ManifestWasm[]
}

/**
 * What `createPlugin` takes:
 *
 * - a manifest, or one as a string of JSON, which begins with `{`;
 * - the bytes of a module;
 * - an http: or https: URL, as a string or a URL: it is fetched, redirects are followed, and the
 *   `content-type` says whether it brings a manifest (`application/json`, `text/json`) or a module
 *   (`application/wasm`, `application/octet-stream`, or none);
 * - a `Response`, of which the same is true;
 * - a `file:` URL or, as any other string, a path of a module.
 *
 * A manifest from the network may not name files of this machine.
 */
export type ManifestLike = Manifest | Response | Bytes | string | URL
export type PluginSource = ManifestLike

/** Where compiled modules are kept. What is in there is executed. */
export interface CompileCacheOptions {
  /**
   * A directory that belongs to this user and that nobody else has rights to (mode 700). It is made
   * where there is none. One that cannot be used is an error, `INVALID_ARGUMENT`, that says why. It may
   * be one that can only be read, once a plugin with the same options has been there.
   * @default the directory of `EXTISM_HOST_CACHE_DIR`, or else `extism-host` in the user's cache
   * directory; where that cannot be used, plugins are compiled anew
   */
  directory?: string
  /**
   * How many bytes it may have, from 1 on. That is a soft limit: Wasmtime looks when it has added
   * something, at most once an hour, and if there is more, removes what was not used for longest until
   * 70 % of the limit are left.
   * @default 536870912 (512 MiB)
   */
  maxBytes?: number
}

/** How much a message matters. */
export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent'

/**
 * Where the messages of a plugin go: the console, one of pino's loggers, or anything with methods of
 * these names. Messages of a level that it has no method for are not passed on.
 */
export interface Logger {
  trace? (message: string): void
  debug? (message: string): void
  info? (message: string): void
  warn? (message: string): void
  error? (message: string): void
}

/**
 * A host function in JavaScript. Of its arguments, i64 are bigints (offsets of blocks, as a rule) and the
 * others numbers. What it returns, or what its promise resolves to, is converted as WebAssembly does;
 * where the guest expects an i64, it may also be a string or bytes, of which a block is made.
 *
 * The guest waits on its thread, the event loop does not. What it throws, or its promise is rejected
 * with, is what the plugin's call is rejected with; the instance is replaced, so that the state of its
 * guest is lost, and the plugin's variables stay. It runs in the asynchronous context
 * (`AsyncLocalStorage`) of the plugin's call.
 *
 * One that awaits a call of its own plugin needs another instance for it. Where all are taken by
 * functions that do so, that call is rejected with `WOULD_DEADLOCK`.
 */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- whatever the guest passes
export type HostFunction = (context: CallContext, ...args: any[]) => unknown

/** Host functions by namespace and name. Those of `env` and of `extism:host/user` stand in for each other. */
export type HostFunctions = Record<string, Record<string, HostFunction>>

export interface PluginOptions extends ManifestOptions {
  /**
   * What errors call the plugin, as `error.plugin`.
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
   * Where standard output and error of the plugin go: to those of this process, nowhere, or to the
   * plugin's logger, line by line, at the levels info and error. See docs/reference/wasi.md.
   * @default false, or true where the environment variable `EXTISM_ENABLE_WASI_OUTPUT` has a value
   */
  enableWasiOutput?: boolean | 'logger'
  /** What the plugin has as its arguments and its environment, 64 KiB together. Both are empty without it. */
  wasi?: { args?: string[], env?: Record<string, string> }
  /**
   * Host functions in JavaScript. They come before those of this library with the same name; the
   * kernel's (`extism:host/env`) cannot be replaced.
   */
  functions?: HostFunctions
  /**
   * Where the plugin's messages go. A guest that writes faster than they are read loses messages (from
   * 4 MiB on that are not read), and the logger is told how many, as a warning.
   * @default console
   */
  logger?: Logger
  /**
   * The least level of messages that are wanted; the guest can ask for it. What it writes below is not
   * passed on.
   * @default 'silent'
   */
  logLevel?: LogLevel
  /**
   * Where `hostMemoryGet` and the `hostStore…` functions look up the guest's keys, shared by reference; the
   * guest may read it. With an object it may do more, or less. An empty one of its own without it. Where
   * the store fails, or has been closed, `hostMemoryGet` rejects the plugin's call with the store's code;
   * the other functions tell the guest.
   */
  store?: MemoryStore | Store | StoreAccess
  /**
   * How many instances there may be, each with a thread of its own, from 1 to 1,024. With one, a
   * plugin's state is seen by each call as the call before left it; with more, each instance has
   * its own state.
   *
   * The first is started with the plugin. Another is, without any call waiting for it, when more calls
   * are unfinished than there are instances. One that cannot be started fails no call: the others go on
   * serving, and it is tried again when calls need it after a pause, of 100 ms first and of twice as
   * much after each failure, up to a minute.
   * @default 1
   */
  instances?: number
  /**
   * Whether `createPlugin` starts all instances and waits for them. The first calls then find them
   * ready, and it rejects where one of them cannot be started.
   * @default false
   */
  eager?: boolean
  /**
   * How many calls may be unfinished at once, running ones included, from 1 to 4,294,967,295. One
   * more is rejected with `QUEUE_FULL`.
   * @default 10000
   */
  maxQueue?: number
  /**
   * How many bytes the inputs of waiting calls may have together; a call that would exceed it is rejected
   * with `QUEUE_FULL`. If no other waits, a call may wait whatever its input has.
   * @default 67108864
   */
  maxQueueBytes?: number
  /**
   * With `'instance'`, an instance serves one call after the other and keeps its state between them.
   * With `'call'` each call has an instance of its own, made ready in the background: nothing of one
   * request is left for the next. That costs each call an instantiation and the plugin's
   * initialization, after its result is there (see docs/explanation/performance.md).
   * @default 'instance'
   */
  isolation?: 'instance' | 'call'
  /**
   * Starts instances from the state after the plugin's initialization, which runs once instead of in each
   * instance. With `isolation: 'call'` instances can then be put back in place: a call of a plugin in Go costs a
   * thirtieth.
   *
   * The first start does not wait for the snapshot, which a thread takes while instances without it serve calls
   * (`stats().snapshot` is `'pending'`). Instances that are made afterwards start from it. Later starts find it in
   * the compile cache, where `precompile` puts it, too. All instances begin with what the initialization has read: the same random numbers (a
   * hash seed, `math/rand`; not what the guest asks for in its calls), and the time of the snapshot; the logger is
   * warned of that when the snapshot is taken. An
   * initialization that calls host functions or uses files, and a plugin that changes its tables, has none:
   * `stats().snapshot` is `'unsupported'` then, the logger is told why, and the plugin starts normally. See
   * docs/explanation/isolation.md.
   * @default false
   */
  snapshot?: boolean
  /**
   * How many calls an instance serves, from 1 to 2⁵³ − 1, before another takes its place, with the state of a new
   * guest. That one is made between two calls, and neither waits for more than its initialization. If the
   * initialization fails, the old instance serves as many calls again. An instance whose guest leaks memory is
   * replaced without this option, before its memory is full.
   * @default no limit
   */
  maxCalls?: number
  /**
   * How many milliseconds old an instance may be, from 1 to 2⁵³ − 1. After the first call that ends later, another
   * takes its place, as with `maxCalls`. An instance that waits for calls is not replaced meanwhile.
   * @default no limit
   */
  maxAgeMs?: number
  /**
   * How much fuel a call has, from 1 to 2⁵³ − 1: about one unit for each WebAssembly instruction, the
   * same in each run. A call that uses it up is rejected with `FUEL_EXHAUSTED`, and its instance
   * replaced. The initialization of an instance has as much. Counting slows guests down. There is no
   * limit without it.
   */
  fuel?: number
  /**
   * Ends the opening of the plugin: `createPlugin` is rejected with the signal's reason at once, even
   * if the compiler still runs. It has no effect on a plugin that has been opened.
   */
  signal?: AbortSignal
  /**
   * How many milliseconds the opening may take, from 1 to 2,147,483,647: fetching, compiling, and the
   * initialization of the instances that it waits for. `createPlugin` is rejected with `TIMEOUT` then, even
   * if the compiler still runs: it goes on in the background, and its result is not used. There is no
   * limit without it.
   *
   * `timeoutMs` does not limit the opening: a call may have to end within 50 ms while a module that is not
   * in the compile cache takes seconds to compile.
   */
  openTimeoutMs?: number
  /**
   * How many bytes an output may have, from 1 to 4,294,967,295. A longer one is not copied, and the
   * call is rejected with `OUTPUT_TOO_LARGE`.
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
   * What runs the plugin. `'extism'` is the reference: the official `extism` crate, with the same host
   * functions, queue and errors. Use it to find out whether a problem comes from this library's own
   * runtime, and only with plugins you trust: one that forges memory blocks can crash the process. It is
   * slower to start and to call.
   *
   * It does not support these options, and rejects with `UNSUPPORTED` if they are given: `functions`,
   * `isolation: 'call'`, `fuel`, `interruption`, `allowedHosts`, `wasi`, `enableWasiOutput`,
   * `compileCache`, nor `precompile`. A plugin that calls a host function while it initializes itself
   * is also `UNSUPPORTED`. Its initialization may take 30 s, whatever `timeoutMs` is, and is not
   * interrupted: one that never ends keeps its thread busy.
   * @default 'wasmtime'
   */
  runtime?: 'wasmtime' | 'extism'
  /**
   * Whether the plugin may read the headers of the responses to its HTTP requests.
   * @default false
   */
  allowHttpResponseHeaders?: boolean
  /**
   * Whether compiled modules are kept on disk, and where: `false` for nowhere, `true` for the default
   * directory where one can be had.
   *
   * What this leaves open the environment variable `EXTISM_HOST_CACHE_DIR` says: it names a directory,
   * or is empty or `off` for no cache.
   * @default true
   */
  compileCache?: boolean | CompileCacheOptions
  /**
   * What fetches plugins that are given as URLs; to send a header, say:
   * `(url, init) => fetch(url, { ...init, headers })`. `init.signal` is aborted when the opening ends early
   * (`signal`, `openTimeoutMs`). Requests that plugins make do not go through it: with `allowedHosts` it is `INVALID_ARGUMENT`.
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

/** What this host can do, under the names that the JavaScript SDK has for it. */
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

/** What goes with one call. */
export interface CallOptions {
  /**
   * Ends the call when it is aborted: one that waits never starts, one that runs is interrupted
   * and its instance replaced. The call is rejected with `signal.reason`.
   */
  signal?: AbortSignal
  /** How many milliseconds this call may run, in place of the plugin's `timeoutMs`. */
  timeoutMs?: number
  /** Where the messages of this call go, in place of the plugin's `logger`. The level is the plugin's. */
  logger?: Logger
}

/** What goes with one synchronous call. */
export interface CallSyncOptions {
  /** How many milliseconds this call may run, in place of the plugin's `timeoutMs`. */
  timeoutMs?: number
  /** Where the messages of this call go, in place of the plugin's `logger`. The level is the plugin's. */
  logger?: Logger
}

/** What the guests of a plugin may do with its store. */
export interface StoreAccess {
  /** The store; an empty one of the plugin's own without it. */
  store?: MemoryStore | Store
  /**
   * Put before each key that a guest names, and taken off those that it is told: it sees and reaches no
   * other keys. Up to 1,024 bytes of UTF-8.
   * @default ''
   */
  prefix?: string
  /**
   * With `'write'` they may change the store too.
   * @default 'read'
   */
  access?: 'read' | 'write'
  /**
   * Bytes that a value may have which a guest sets, from 1 to 2³² − 1.
   * @default 1048576
   */
  maxValueBytes?: number
  /**
   * How many keys there may be under the prefix when a guest adds one, whoever set them. Keys are counted
   * when the first is added, and again when there seems to be no room, at most once a second; others that
   * add keys under the same prefix meanwhile may make them more. No limit without it.
   */
  maxKeys?: number
}

/** What a plugin has done since it was opened, and what it does at this moment. */
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
   * What new instances start from: `'none'` without the option `snapshot`, `'pending'` until the first snapshot has
   * been taken, `'taken'`, or `'unsupported'` if the plugin does not allow one.
   */
  snapshot: 'none' | 'pending' | 'taken' | 'unsupported'
  /** What its guests have asked of its store. */
  store: {
    /** Keys that were looked up. */
    reads: number
    /** Those of them that had a value. */
    hits: number
    /** Changes that were made. */
    writes: number
    /** What was refused or failed, by code; `CANCELED` if the guest's call ended while it waited for the store. */
    failed: Partial<Record<ErrorCode | 'CANCELED', number>>
  }
}

/** The stable names of what can go wrong. */
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
 * What this library throws and rejects with: `error instanceof PluginError` says so. With `INVALID_ARGUMENT` it is a
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
  /** The output decoded as UTF-8; what is no UTF-8 becomes U+FFFD. */
  text (): string
  /** The same as `text()`. */
  string (): string
  /** The output parsed as JSON. Throws a `SyntaxError` where it is none. */
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
 * What a host function has of the guest that has called it, as its first argument. To use it after the
 * function has returned, or after its call was ended, throws `CONTEXT_ENDED`.
 *
 * Except for arguments (up to 64 KiB together), each use costs some microseconds, in which the event loop
 * waits for the guest's thread.
 */
export class CallContext {
  private constructor ()
  /** What was passed to the plugin's call as `hostContext`. */
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- whatever the caller passed
  hostContext<T = any> (): T
  /** The plugin's `logLevel`. */
  readonly logLevel: LogLevel
  /**
   * Makes a block of that many bytes, all zero, and returns its offset; 0 for an empty one. Throws
   * `OUT_OF_MEMORY` where there is no room for it.
   */
  alloc (size: bigint | number): bigint
  /** Makes a block with this content, and returns its offset; 0 for an empty one. Throws as `alloc`. */
  store (content: string | Bytes): bigint
  /** A copy of the block that starts at the offset; `null` where none does. */
  read (offset: bigint | number): PluginOutput | null
  /** The length of the block that starts at the offset; 0 where none does. */
  length (offset: bigint | number): bigint
  /**
   * Lets the plugin's call fail with `PLUGIN_ERROR` and this message when the guest has returned;
   * without one, no longer.
   */
  setError (error?: string | Error | null): void
  /** A copy of the plugin's variable of that name. */
  getVariable (name: string): PluginOutput | null
  /** Sets a variable. Throws `VARIABLES_FULL` where it exceeds `memory.maxVarBytes`. */
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
   * Runs a function of the plugin and waits for it: for scripts and tests. The event loop stands still
   * meanwhile; without `timeoutMs` for as long as the plugin likes. Returns and throws what `call`
   * resolves to and rejects with. Host functions in JavaScript must answer at once; a promise is
   * refused with `WOULD_DEADLOCK`.
   */
  callSync (name: string, input?: string | Bytes | null, hostContext?: unknown, options?: CallSyncOptions | null): PluginOutput | null
  /** Counters, and what the plugin does at this moment. Cheap. */
  stats (): PluginStats
  /** Whether the plugin has a function of that name that can be called. */
  functionExists (name: string): Promise<boolean>
  /** What the main module exports, as its author wrote it. */
  getExports (): Promise<ModuleExportDescriptor[]>
  /** What the main module imports, as its author wrote it. */
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
 * It works as a `Map` does, insertion order included, with strings as keys and strings or bytes as
 * values. What is set is seen by the next host call of each plugin that has the store. Reading waits for
 * nobody. `openStore(store)` gives it the face that all stores have, with more operations.
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
  /** How many keys there are. */
  readonly size: number
  /**
   * Sets a key, for ever or for `ttlMs`. Bytes are copied. Strings must be well-formed Unicode. Throws
   * `VALUE_TOO_LARGE` where the entry exceeds `maxBytes` alone.
   */
  set (key: string, value: string | Bytes, options?: EntryOptions | null): this
  /**
   * What was set: a string where a string was set, a Buffer with a copy where bytes were, or where it was
   * set through a `Store`.
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

/** How much a store in memory may have. */
export interface MemoryStoreOptions {
  /**
   * How many bytes the store may take, from 1 to 2⁵³ − 1: keys, values, and 200 bytes for each entry.
   * Where there is no room for another entry, those are removed that have not been read or set for
   * longest, about. There is no limit without it.
   */
  maxBytes?: number
}

/** How a store is opened. One that has no use for an option refuses it. */
export interface StoreOptions extends MemoryStoreOptions {
  /**
   * For `redb:`: how many bytes of the file are kept in memory, from 1 to 2⁵³ − 1. Who opens a file that is
   * open in this process already must leave it out or say the same.
   *
   * On Redis: how many bytes the cache of this store may take: keys, values, and 200 bytes for each entry.
   * With 0 there is no cache.
   * @default 64 MiB
   */
  cacheBytes?: number
  /**
   * On Redis: how many milliseconds a server may take to let this store in, and to answer, from 1 to
   * 2³¹ − 1. Large values need the time in which they are sent.
   * @default 1000
   */
  timeoutMs?: number
  /**
   * With `rediss:` and `rediss+cluster:`: the authorities that may have issued a server's certificate, as PEM.
   * Without it those that Mozilla trusts.
   */
  ca?: string | Bytes
  /**
   * On Redis: whether opening the store fails with `STORE_UNAVAILABLE` if a server cannot be reached. With `false` it is
   * opened, tries to connect again and again, and each use fails with that code until it has.
   * @default true
   */
  required?: boolean
}

/** How an entry of a store is set. */
export interface EntryOptions {
  /**
   * After how many milliseconds the entry is gone, from 1 to 2⁵³ − 1. It stays until it is deleted without
   * it, also where the key had a lifetime before.
   */
  ttlMs?: number
}

/** What has happened to a key. */
export type StoreChange =
  /** It has been set; `value` is there where the store can tell. */
  | { type: 'set', key: string, value?: Buffer }
  /** It has been removed: by somebody, as its time was over, or to make room. */
  | { type: 'delete', key: string, value?: undefined }
  /** Changes may have been missed, as they were read too slowly or the connection was lost. */
  | { type: 'lost', key?: undefined, value?: undefined }

/**
 * A store, opened by `openStore`: one face for all kinds.
 *
 * Keys are strings of well-formed Unicode of up to 64 KiB in UTF-8, an empty one included. Values are
 * bytes; a string is stored as UTF-8. What goes in and out is copied. Operations run on threads of this
 * library (up to 16 of the process), and those that are not awaited run in any order. One that is on its
 * way keeps the process alive; an open store does not.
 *
 * All methods reject with a `PluginError`: `INVALID_ARGUMENT`, also for a key that is too long; `CLOSED`;
 * `VALUE_TOO_LARGE` and `STORE_FULL`; `STORE_UNAVAILABLE` where the store cannot be reached, or not in
 * time, and may or may not have done what was asked; `STORE_DAMAGED`; `ACCESS_DENIED`. One that fails has
 * changed nothing otherwise.
 */
export class Store implements AsyncDisposable {
  private constructor ()
  /** The value of a key. */
  get (key: string): Promise<Buffer | undefined>
  /** Sets a key, for ever or for `ttlMs`. */
  set (key: string, value: string | Bytes, options?: EntryOptions | null): Promise<void>
  /** Removes a key, and resolves to whether it was there. */
  delete (key: string): Promise<boolean>
  has (key: string): Promise<boolean>
  /**
   * The keys that begin with `prefix` (all without it), fetched as they are needed, a thousand at a time.
   * A key that is there all the time comes once; one that is set or removed meanwhile may come or not. In
   * memory and in a file they come in the order of their UTF-8. On Redis a key may come again where many others are
   * removed meanwhile, and `keys` rejects with `STORE_UNAVAILABLE` where the servers of a cluster change.
   */
  keys (options?: { prefix?: string } | null): AsyncGenerator<string, void, undefined>
  /**
   * Adds to a number that is stored as decimal digits, in one step, and resolves to the sum: a bigint where
   * a number would not be exact. A key that is not there counts as 0; one that is keeps its lifetime.
   * Rejects with `INVALID_ARGUMENT` where the value is no whole number of 64 bits, or the sum would not be.
   * @default delta 1
   */
  increment (key: string, delta?: number | bigint): Promise<number | bigint>
  /**
   * Sets a key, or removes it where `value` is `undefined`, if it has the expected value; `undefined` stands
   * for no such key. In one step: nobody changes the key in between. Resolves to whether it had that value.
   */
  compareAndSwap (key: string, expected: string | Bytes | undefined, value: string | Bytes | undefined, options?: EntryOptions | null): Promise<boolean>
  /** The values of keys, in their order. */
  getMany (keys: Iterable<string>): Promise<Array<Buffer | undefined>>
  /** Sets keys. In a store on other machines, some may have been set where it fails. */
  setMany (entries: Iterable<readonly [string, string | Bytes]>, options?: EntryOptions | null): Promise<void>
  /** Removes keys, and resolves to how many were there. As `setMany` otherwise. */
  deleteMany (keys: Iterable<string>): Promise<number>
  /**
   * The changes of the keys that begin with `prefix`, whoever makes them, those of each key in their order.
   * What this Store is asked for after the call of `watch` is among them. It ends when the store is closed
   * or with `return()` (as `break` does), and rejects with the reason of `signal` when that is aborted.
   *
   * On Redis, changes of a key that follow closely may be told as one, the last; and it does not tell what a
   * key was set to.
   *
   * Up to 1,024 changes, or 4 MiB of them, wait to be read; those that come after that are missing, and a
   * change `lost` tells of it. To wait for a change keeps the process alive.
   */
  watch (prefix?: string, options?: { signal?: AbortSignal } | null): AsyncIterableIterator<StoreChange> & AsyncDisposable
  /**
   * Closes the store, when what was asked of it before is over: what is asked of it afterwards is refused with
   * `CLOSED`, also where plugins do. A MemoryStore or a named store stays what it is for all others that have
   * it. Can be called again.
   */
  close (): Promise<void>
  /** The same as `close()`, for `await using`. */
  [Symbol.asyncDispose] (): Promise<void>
  readonly [Symbol.toStringTag]: string
}

/**
 * Opens a store by its URL: `memory:` is a new one in memory, `memory:name` the one of that name that
 * `MemoryStore.named(name)` is too; `redis://user:password@host:port/database` is on a Redis server, `rediss://`
 * with TLS; `redis+cluster://user:password@host:port,host:port` and `rediss+cluster://` on a Redis cluster, some of
 * whose servers are named. With a MemoryStore, that store has the same face.
 *
 * `redb:./data.redb`, or `redb:/path/of/data.redb`, is a durable store in a file, which is made where there is
 * none, for its owner only. All in this process that open the file have the same store; other processes are
 * refused until all have closed it. In the path, `%`, `?` and `#` are written `%25`, `%3F` and `%23`.
 *
 * Rejects with `NO_SUCH_STORE` where no store has the URL's scheme, and with `INVALID_ARGUMENT`. For a file also
 * with `FILE_NOT_FOUND` where its directory is missing, `ACCESS_DENIED`, `STORE_FULL`, `STORE_DAMAGED` where it is
 * damaged or no store, and `STORE_UNAVAILABLE` where another process has it. On Redis also with `STORE_UNAVAILABLE`
 * where a server does not answer, or has a certificate that is not valid, and with `ACCESS_DENIED` where it does not
 * let in. Messages never have the password.
 */
export function openStore (source: string | URL | MemoryStore, options?: StoreOptions | null): Promise<Store>

/** What `keyvAdapter` returns. */
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
 * A store for Keyv 5 and 6: `new Keyv({ store: keyvAdapter(store), namespace: 'sessions' })`. Keyv puts its
 * namespace before its keys, so several can have one store; lifetimes are the store's. Keyv must make
 * strings of values, as it does by default. To close the store is left to who has opened it.
 *
 * One adapter is for one Keyv, which tells it its namespace. Throws `INVALID_ARGUMENT` for what is no store.
 */
export function keyvAdapter (store: Store | MemoryStore): KeyvStoreAdapter

/**
 * Loads a plugin and starts its first instance, or all with `eager`, off the event loop. `source` may
 * be a promise.
 *
 * Rejects with a `PluginError`: `INVALID_ARGUMENT`, `FILE_NOT_FOUND`, `FETCH_FAILED`, `INVALID_WASM`,
 * `HASH_MISMATCH`, `MISSING_IMPORT`, `CIRCULAR_LINKING`, `RESERVED_NAME` or `OUT_OF_MEMORY`; or with what
 * ended the plugin's initialization, as `call` does.
 */
export function createPlugin (source: ManifestLike | PromiseLike<ManifestLike>, options?: PluginOptions): Promise<Plugin>
export { createPlugin as newPlugin }
export default createPlugin

/**
 * Fills the compile cache with what `createPlugin` of the same source and options would compile, off the
 * event loop, so that it takes milliseconds later, in another process too. Nothing of the plugin runs.
 *
 * Pass the options that the plugin will be opened with: `useWasi`, `wasi`, `enableWasiOutput`, `memory.maxPages`,
 * `functions`, and whether there is `fuel`, are part of what is compiled, and `compileCache` says where it is kept.
 * The others are checked and make no difference. Resolves at once where all is there already.
 *
 * Rejects as `createPlugin` does, with `INVALID_ARGUMENT` if `compileCache` is `false`, and with
 * `CACHE_UNAVAILABLE` if there is no cache otherwise (the default directory cannot be used, or
 * `EXTISM_HOST_CACHE_DIR` turns it off), or if it cannot keep what was compiled: the compiled plugin has
 * more than `compileCache.maxBytes`, or the disk is full. The message says which.
 */
export function precompile (source: ManifestLike | PromiseLike<ManifestLike>, options?: PluginOptions): Promise<void>
