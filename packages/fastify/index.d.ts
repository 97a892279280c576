import type { FastifyContextConfig, FastifyPluginAsync, HTTPMethods, RouteShorthandOptions } from 'fastify'
import type { OpenMetricsContentType, Registry } from 'prom-client'
import type { CallOptions, ManifestLike, MemoryStore, Plugin, PluginOptions, PluginOutput, PluginStats, Store, StoreAccess, Bytes } from 'extism-host'

declare module 'fastify' {
  interface FastifyInstance {
    /** The plugins that `extism-host/fastify` was registered with in this scope, or in the nearest parent scope. */
    extism: extismHost.Plugins
  }
}

type ExtismHost = FastifyPluginAsync<extismHost.ExtismHostOptions>

declare namespace extismHost {
  /** A plugin's source, with options for `createPlugin`. */
  export interface PluginDefinition extends PluginOptions {
    /** The source of the plugin. A reload reads it again. */
    source: ManifestLike | PromiseLike<ManifestLike>
    /**
     * The connections that the plugin may use by the host functions of `extism-host/connect`, by the plugin's name for
     * each. Nothing else is allowed. Functions of your own with the same names take precedence.
     * @example
     * { events: { connection: 'broker', publish: ['orders.*'] }, db: { connection: 'database', statements: { all: 'SELECT …' } } }
     */
    connect?: Record<string, ConnectPermissions>
    /** A call that must succeed before a version of the plugin serves any request: at the start, and after a reload. */
    smoke?: SmokeCall
  }

  /** Options of all permissions. */
  export interface ConnectPermissionOptions {
    /**
     * The name of the connection in `connections`.
     * @defaultValue the plugin's name for it
     */
    connection?: string
    /**
     * The longest that the plugin waits for the broker or the database. The deadline of its call may end the wait earlier.
     * @defaultValue 30000
     */
    timeoutMs?: number
  }

  /** The permissions of a plugin on a connection: options of `nats`, `mqtt`, `postgres` or `redis` of `extism-host/connect`. */
  export type ConnectPermissions =
    | ConnectPermissionOptions & { publish?: string[], request?: string[], maxPayloadBytes?: number, maxUnflushedBytes?: number }
    | ConnectPermissionOptions & { publish?: string[], retain?: string[], maxPayloadBytes?: number, maxUnacknowledged?: number }
    | ConnectPermissionOptions & { statements: Record<string, string> | 'any', readOnly?: boolean, maxRows?: number, maxBytes?: number }
    | ConnectPermissionOptions & { read?: string[], write?: string[], publish?: string[], maxValueBytes?: number, maxKeys?: number }

  /** A test call of a new version of a plugin. If it fails, the version is rejected with `SMOKE_FAILED`. */
  export interface SmokeCall {
    /** The function to call. */
    function: string
    /** The input of the call. */
    input?: string | Bytes
    /** The expected output. Without it, any output is accepted. */
    expect?: string | Bytes
    /**
     * The time limit of the call, in milliseconds.
     * @defaultValue 5000
     */
    timeoutMs?: number
  }

  /** A route that runs a function of a plugin, with all options of Fastify's routes: hooks, `config`, `constraints`… */
  export interface PluginRoute extends RouteShorthandOptions {
    /**
     * The HTTP method or methods of the route.
     * @defaultValue 'POST'
     */
    method?: HTTPMethods | HTTPMethods[]
    /** The path of the route, as in Fastify. */
    url: string
    /** The name of a plugin in `plugins`. */
    plugin: string
    /** The function to run. If the plugin does not have it, the app fails to start. */
    function: string
    /**
     * The interface between the route and the function.
     *
     * - `'raw'`: the input is the unparsed body, of any content type or none; the output is the body of the response.
     * - `'http'`: the input is an `HttpRequest`, and the output an `HttpAnswer`, both as JSON. An invalid output is
     *   a 502.
     * @defaultValue 'raw'
     */
    mode?: 'raw' | 'http'
    /**
     * The `content-type` of the response. In the mode `'http'`, the function's own `content-type` header overrides
     * it.
     * @defaultValue 'application/octet-stream'; in the mode 'http', 'text/plain; charset=utf-8' for text
     */
    contentType?: string
    /** The time limit of the call in milliseconds, instead of the plugin's `timeoutMs`. A call that exceeds it is a 504. */
    timeoutMs?: number
    /** The maximum size of the body in bytes, instead of the app's `bodyLimit`. A larger body is a 413. */
    bodyLimit?: number
    /**
     * The schema of the route, as in Fastify. With `body`, the app's parsers read the body, Fastify validates it, and
     * the input is the validated value as JSON. Without `response`, the API's documentation shows `contentType`.
     */
    schema?: RouteShorthandOptions['schema']
    /**
     * The status of a `PLUGIN_ERROR`, from 400 to 599. The client then also gets the plugin's message; all other
     * messages stay hidden.
     * @defaultValue 500, without the message
     */
    errors?: { PLUGIN_ERROR?: number }
  }

  /** The input of a function in the mode `'http'`, as JSON. */
  export interface HttpRequest {
    /** The HTTP method. */
    method: string
    /** The path and the query, as the client sent them. */
    url: string
    /** The path without the query. */
    path: string
    /** The parsed query. */
    query: Record<string, unknown>
    /** The parameters of the route's path. */
    params: Record<string, unknown>
    /** All headers, including those with credentials. Names are in lower case. */
    headers: Record<string, string | string[]>
    /** The body, as text if it is valid UTF-8, else as base64. Empty if the request has no body. */
    body: string
    /** Whether `body` is base64. */
    isBase64: boolean
  }

  /** The output of a function in the mode `'http'`, as JSON. Other properties are an error. */
  export interface HttpAnswer {
    /**
     * The HTTP status, from 200 to 599.
     * @defaultValue 200
     */
    status?: number
    /** The headers; an array repeats one. Headers about the connection (`content-length`, `connection`…) are an error. */
    headers?: Record<string, string | string[]>
    /** The body, as text or base64. */
    body?: string
    /**
     * Whether `body` is base64.
     * @defaultValue false
     */
    isBase64?: boolean
  }

  /** A broker or a database. */
  export type BrokerConnection =
    // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
    | { nats: string, [option: string]: any }
    // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
    | { mqtt: string, [option: string]: any }
    // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
    | { postgres: string, max?: number, [option: string]: any }
    // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
    | { redis: string, [option: string]: any }
    // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
    | { get (key: string): Promise<string | null>, ping (): Promise<any>, scanIterator (options?: any): AsyncIterable<string[]> }
    // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
    | { connect (): Promise<any>, query (text: string, values?: any[]): Promise<any>, options: { max?: number } }
    // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
    | { subscribe (subject: string, options?: any): any, flush (): Promise<void> }

  /** Options of all triggers of the app. */
  export interface PluginTriggerOptions {
    /**
     * The name of a connection in `connections`.
     * @defaultValue the only one to such a broker
     */
    connection?: string
    /** The name of a plugin in `plugins`. */
    plugin: string
    /** The function to call. If the plugin does not have it, the app fails to start. */
    function: string
    /**
     * The number of calls at the same time.
     * @defaultValue 16
     */
    concurrency?: number
    /** The time limit of a call in milliseconds, instead of the plugin's `timeoutMs`. */
    timeoutMs?: number
  }

  /** A trigger of the app: `nats`, `jetStream` or `mqtt` with a subject or topic, and options of `extism-host/connect`. */
  export type PluginTrigger =
    | PluginTriggerOptions & { nats: string, queue?: string, maxPending?: number }
    | PluginTriggerOptions & {
      jetStream: string
      stream: string
      consumer: string
      ackWaitMs?: number
      maxDeliver?: number
      backoffMs?: number[]
      deadLetterSubject?: string
    }
    | PluginTriggerOptions & {
      mqtt: string
      clientId: string
      maxPending?: number
      maxDeliver?: number
      backoffMs?: number[]
      deadLetterTopic?: string
      replyTopics?: string[]
    }

  /** The options of the registration. */
  export interface ExtismHostOptions {
    /**
     * The plugins by name: a source, a source with options, or a `Plugin` made by `createPlugin`. The app opens and
     * closes plugins given by their source; a `Plugin` stays open when the app closes.
     *
     * By default, plugins opened here write their messages to the app's log, from the log's level on.
     */
    plugins: Record<string, ManifestLike | PromiseLike<ManifestLike> | PluginDefinition | Plugin>
    /** Routes that run functions of the plugins. */
    routes?: PluginRoute[]
    /**
     * The brokers and databases of triggers and plugins, by name: a URL with options of the client, an open connection to NATS,
     * a `Pool` of `pg`, or a client of `redis`. The app opens connections given by a URL once they are needed, and closes them; an open one stays open
     * when the app closes. If one cannot be opened, the app fails to start.
     */
    connections?: Record<string, BrokerConnection>
    /**
     * Calls plugins for messages, from when the app is ready until it closes. The app logs failed calls; `onError` is not an
     * option. Readiness includes the brokers, and the metrics count messages by outcome.
     */
    triggers?: PluginTrigger[]
    /** The default `store` of the plugins opened here. */
    store?: MemoryStore | Store | StoreAccess
    /**
     * Adds two routes for orchestrators:
     *
     * - `GET /health/live`: 200 while the process responds.
     * - `GET /health/ready`: 200 if all plugins are open and serve calls, all known stores respond within a
     *   second and are not full, and the brokers of all triggers and the connections of all plugins respond within a second;
     *   else 503.
     *
     * `prefix` replaces `/health`. `config` is the `config` of the routes, in which `rateLimit` is `false` by
     * default.
     * @defaultValue false
     */
    health?: boolean | { prefix?: string, config?: FastifyContextConfig & Record<string, unknown> }
    /**
     * Adds `GET /metrics` for Prometheus: calls by plugin, function and code, their durations, waiting and running apart,
     * the counters of `stats()`, the messages of triggers, the event loop and threads. `prefix` replaces `/metrics`, and
     * `config` is the `config` of the route, as in `health`.
     *
     * With `register`, a registry of prom-client, the metrics are added to that registry until the app closes. Then
     * there is a route only with a `prefix`; it shows all metrics of the registry.
     * @defaultValue false
     */
    metrics?: boolean | { prefix?: string, config?: FastifyContextConfig & Record<string, unknown>, register?: Registry | Registry<OpenMetricsContentType> }
    /**
     * Adds routes for operators. Requests need the header `authorization: Bearer <token>`; the token has at least 16
     * ASCII characters. `prefix` replaces `/admin`.
     *
     * - `GET /admin/plugins`: `{ plugins }`, each with `name`, `openedAt`, and `upload`: `{ sha256, bytes }` or `null`.
     * - `POST /admin/plugins/:name`: the body, a WebAssembly module, replaces the plugin's main module; 200 with the
     *   plugin as in the list, or 422 with the reason. The module must pass the checks of a reload, and goes before the
     *   configured one until its file is removed from `uploads.directory`. `uploads.maxBytes` is 64 MiB by default.
     *   Without `uploads`, the route is a 409.
     * - `POST /admin/plugins/:name/reload`: 204, or 422 with the reason.
     * - `GET /admin/store?prefix=&cursor=`: `{ keys, cursor }` with up to a thousand keys, and the cursor of the next
     *   page, or `null` on the last.
     * - `GET`, `PUT` (`?ttlMs=`) and `DELETE /admin/store/<key>`: the key is percent-encoded; the body is the value.
     *
     * The store is the option `store`, without the prefix and limits that apply to guests. Without that option, there
     * are no store routes.
     */
    admin?: { token: string, prefix?: string, uploads?: { directory: string, maxBytes?: number } }
    /**
     * Adds a page at `/docs` that describes the routes, each with its plugin, function, input and errors, and runs them
     * from the browser. It needs the packages `@fastify/swagger` and `@fastify/swagger-ui`, and joins them if the app has
     * registered them before. The page has no access control.
     *
     * `prefix` replaces `/docs`, and `info` has the title and version of the API, as in OpenAPI.
     * @defaultValue false
     */
    docs?: boolean | { prefix?: string, info?: { title?: string, version?: string, description?: string } }
    /**
     * The milliseconds that running calls get to end when the app closes, from 0 to 2,147,483,647. Remaining calls
     * are interrupted, and their responses are 503. Calls of a `Plugin` that the app passed are not interrupted.
     * @defaultValue 10000
     */
    closeTimeoutMs?: number
    /** A prefix for the paths of all routes. */
    prefix?: string
  }

  /** A plugin of the app. A reload replaces the version that serves its calls. */
  export interface HostedPlugin {
    /** Runs a function of the plugin, like `Plugin.call`. */
    call<T = unknown> (name: string, input?: string | Bytes | null, hostContext?: T, options?: CallOptions | null): Promise<PluginOutput | null>
    /** Returns the counters of the serving version, like `Plugin.stats`. */
    stats (): PluginStats
  }

  /** The plugins of an app, as `fastify.extism`. */
  export interface Plugins {
    /** The names of the plugins. */
    readonly names: string[]
    /**
     * Returns a plugin by name.
     * @throws `INVALID_ARGUMENT` if there is no plugin of that name
     */
    plugin (name: string): HostedPlugin
    /**
     * Reloads a plugin from its source without losing a call. Resolves when the new version serves. The old version
     * closes after its last call. The plugin's variables start empty.
     *
     * If the new version cannot be opened, lacks a function of a route, or fails its smoke call, the old one keeps
     * serving. Reloads run one after the other.
     * @throws the error of `createPlugin` if the new version cannot be opened
     * @throws `INVALID_ARGUMENT` if it lacks a function that a route calls, or there is no plugin of that name
     * @throws `SMOKE_FAILED` if its smoke call failed
     * @throws `UNSUPPORTED` if the app passed the plugin as a `Plugin`
     * @throws `CLOSED` if the app is closed
     */
    reload (name: string): Promise<void>
    /**
     * Adds and replaces plugins, as in the option `plugins`, and removes those whose value is `null`. Running calls
     * end on the version that they started on.
     *
     * If any plugin cannot be opened, lacks a function of a route or fails its smoke call, or if a route calls a
     * removed plugin, it rejects and changes nothing.
     * @throws the same errors as `reload`
     */
    update (changes: Record<string, ExtismHostOptions['plugins'][string] | null>): Promise<void>
    /**
     * Makes `GET /health/ready` respond with 503 from now on, so that load balancers send no more requests. Call it
     * some time before `close()`.
     */
    drain (): void
  }

  export const extismHost: ExtismHost
  export { extismHost as default }
}

/**
 * A Fastify plugin that serves Extism plugins: routes that run their functions, and `fastify.extism` for handlers.
 *
 * In a call for a route, `context.hostContext()` of host functions in JavaScript is the request; the plugin's
 * messages go to `request.log`; the call is canceled when the client disconnects. Errors have a `statusCode`, a
 * `code`, and a message for the client; their `cause` is the error of the call.
 *
 * @example
 * ```js
 * const app = require('fastify')()
 * await app.register(require('extism-host/fastify'), {
 *   plugins: { greeter: 'greeter.wasm' },
 *   routes: [{ url: '/greet', plugin: 'greeter', function: 'greet' }],
 *   health: true
 * })
 * await app.listen({ port: 7070 })
 * ```
 */
declare function extismHost (...parameters: Parameters<ExtismHost>): ReturnType<ExtismHost>

export = extismHost
