import type { FastifyContextConfig, FastifyPluginAsync, HTTPMethods, RouteShorthandOptions } from 'fastify'
import type { OpenMetricsContentType, Registry } from 'prom-client'
import type { CallOptions, ManifestLike, MemoryStore, Plugin, PluginOptions, PluginOutput, PluginStats, Store, StoreAccess, Bytes } from 'extism-host'

declare module 'fastify' {
  interface FastifyInstance {
    /** The plugins of the registration of `extism-host/fastify` in this scope, or the nearest above it. */
    extism: extismHost.Plugins
  }
}

type ExtismHost = FastifyPluginAsync<extismHost.ExtismHostOptions>

declare namespace extismHost {
  /** A source, and options for `createPlugin`. */
  export interface PluginDefinition extends PluginOptions {
    source: ManifestLike | PromiseLike<ManifestLike>
    /** A call that must succeed before a version of the plugin serves any other: at the start, and when it is reloaded. */
    smoke?: SmokeCall
  }

  export interface SmokeCall {
    function: string
    input?: string | Bytes
    /** What the output must be. */
    expect?: string | Bytes
    /** @default 5000 */
    timeoutMs?: number
  }

  /** A route that runs a function of a plugin, with the options that Fastify's routes have: hooks, `config`, `constraints`… */
  export interface PluginRoute extends RouteShorthandOptions {
    /** @default 'POST' */
    method?: HTTPMethods | HTTPMethods[]
    url: string
    /** One of the names in `plugins`. */
    plugin: string
    /** A function that the plugin has; else the app does not get ready. */
    function: string
    /**
     * With `'raw'` the plugin gets the body as it is, of any type or none, and its output is the answer.
     * With `'http'` it gets an `HttpRequest` as JSON, and gives an `HttpAnswer` as JSON; anything else is 502.
     * @default 'raw'
     */
    mode?: 'raw' | 'http'
    /**
     * The `content-type` of the answer, where a function of the mode `'http'` says no other.
     * @default 'application/octet-stream'; with 'http', 'text/plain; charset=utf-8' for text
     */
    contentType?: string
    /** How many milliseconds the call may run, in place of the plugin's `timeoutMs`; else 504. */
    timeoutMs?: number
    /** How many bytes the body may have, in place of the app's `bodyLimit`; else 413. */
    bodyLimit?: number
    /**
     * As in Fastify. With `body`, the app's parsers read the body, Fastify validates it, and the plugin gets the validated
     * value as JSON. Without `response`, the API's description has the `contentType` of the answer.
     */
    schema?: RouteShorthandOptions['schema']
    /**
     * The status of a `PLUGIN_ERROR`, from 400 to 599: the client then gets the plugin's message. All other messages stay
     * hidden.
     * @default 500, without the message
     */
    errors?: { PLUGIN_ERROR?: number }
  }

  /** What a function of the mode `'http'` gets, as JSON. */
  export interface HttpRequest {
    method: string
    /** The path and the query, as they were sent. */
    url: string
    path: string
    query: Record<string, unknown>
    params: Record<string, unknown>
    /** All of them, names in lower case; also those with credentials. */
    headers: Record<string, string | string[]>
    /** As text where it is UTF-8, and else as base64; empty where there is none. */
    body: string
    isBase64: boolean
  }

  /** What a function of the mode `'http'` gives, as JSON, with no other properties. */
  export interface HttpAnswer {
    /**
     * From 200 to 599.
     * @default 200
     */
    status?: number
    /** Several values of one header as an array. How the answer is brought (`content-length`, `connection`…) is not up to the plugin. */
    headers?: Record<string, string | string[]>
    /** Text, or base64. */
    body?: string
    /** @default false */
    isBase64?: boolean
  }

  export interface ExtismHostOptions {
    /**
     * The plugins by their names: sources, definitions, or plugins of `createPlugin`. Those that are opened
     * here are closed with the app, those that are given are left open.
     *
     * Where neither is said of a plugin that is opened here, its messages go to the app's log, from the
     * level of that on.
     */
    plugins: Record<string, ManifestLike | PromiseLike<ManifestLike> | PluginDefinition | Plugin>
    routes?: PluginRoute[]
    /** The `store` of all plugins opened here that have none of their own. */
    store?: MemoryStore | Store | StoreAccess
    /**
     * `GET /health/live`, which answers as long as the process does, and `GET /health/ready`: 200 where all plugins
     * are open and serve calls, all their stores that are known here answer within a second, and none is full, else 503. `prefix` stands in place of
     * `/health`. `config` is the routes' configuration, in which `rateLimit` is `false` unless it says otherwise.
     * @default false
     */
    health?: boolean | { prefix?: string, config?: FastifyContextConfig & Record<string, unknown> }
    /**
     * `GET /metrics` for Prometheus: calls by plugin, function and code, how long they took, and what `stats()` has.
     * `prefix` stands in place of `/metrics`, `config` is the route's configuration, as in `health`.
     *
     * With `register`, a registry of prom-client, the metrics are added to that one until the app is closed. Then there is
     * a route only with a `prefix`; it shows all that the registry has.
     * @default false
     */
    metrics?: boolean | { prefix?: string, config?: FastifyContextConfig & Record<string, unknown>, register?: Registry | Registry<OpenMetricsContentType> }
    /**
     * Routes for who has the token, of at least 16 characters of ASCII, and sends it as `authorization: Bearer …`. `prefix`
     * stands in place of `/admin`.
     *
     * - `POST /admin/plugins/:name/reload`: 204, or 422 with the reason.
     * - `GET /admin/store?prefix=&cursor=`: `{ keys, cursor }`, up to a thousand keys, and the cursor of the next
     *   ones, `null` where there are none.
     * - `GET`, `PUT` (`?ttlMs=`) and `DELETE /admin/store/<key>`: the key percent-encoded, the body is the value.
     *
     * The store is that of `store`, without its prefix and its limits for guests; there are no such routes without one.
     */
    admin?: { token: string, prefix?: string }
    /**
     * How many milliseconds calls have to end once `fastify.close()` waits for them, from 0 to 2,147,483,647. Those that
     * are left are interrupted: 503. A plugin that was given as a `Plugin` is left alone.
     * @default 10000
     */
    closeTimeoutMs?: number
    /** Put before the urls of all routes. */
    prefix?: string
  }

  /** One of the app's plugins. */
  export interface HostedPlugin {
    /** As `call` of a Plugin. */
    call<T = unknown> (name: string, input?: string | Bytes | null, hostContext?: T, options?: CallOptions | null): Promise<PluginOutput | null>
    /** As `stats` of a Plugin. */
    stats (): PluginStats
  }

  /** What an app has as `fastify.extism`. */
  export interface Plugins {
    readonly names: string[]
    /** The plugin of that name; throws `INVALID_ARGUMENT` where there is none. */
    plugin (name: string): HostedPlugin
    /**
     * Opens the plugin from its source again, in place of the version that serves. Resolves when calls go to the
     * new one; the old one is closed when the calls that it has are over. The plugin's variables begin anew.
     *
     * One reload follows the other. Rejects, and changes nothing, where the new version cannot be opened, lacks a
     * function that a route calls, or fails its smoke call: `SMOKE_FAILED`. A plugin that was given as a `Plugin`
     * cannot be reloaded: `UNSUPPORTED`.
     */
    reload (name: string): Promise<void>
    /**
     * Adds and replaces plugins, described as in the option `plugins`; `null` removes one. Either all of that happens, or it
     * rejects and nothing has changed: if a plugin cannot be opened, lacks a function that a route calls, or fails its
     * smoke call, and if a route calls a removed plugin. Calls under way end on the version that they began with.
     */
    update (changes: Record<string, ExtismHostOptions['plugins'][string] | null>): Promise<void>
    /** From now on `GET /health/ready` is 503, so that a load balancer sends no more requests. Call it some time before `close()`. */
    drain (): void
  }

  export const extismHost: ExtismHost
  export { extismHost as default }
}

/**
 * Extism plugins in a Fastify app: routes that run their functions, and `fastify.extism` for handlers.
 *
 * In a call for a route, `context.hostContext()` of host functions in JavaScript is the request; the plugin's
 * messages go to `request.log`; the call ends when the client goes away. Errors have a `statusCode`, a `code`, and a
 * message for the client; what the plugin's call was rejected with is their `cause`.
 */
declare function extismHost (...parameters: Parameters<ExtismHost>): ReturnType<ExtismHost>

export = extismHost
