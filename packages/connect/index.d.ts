import type { CallContext, CallOptions, PluginOutput } from 'extism-host'

declare const made: unique symbol

/** A connection that guests may name, made by `mqtt`, `nats`, `postgres` or `redis`. */
export interface Connection {
  readonly [made]: true
  /** Counts what guests of all plugins have done on it. */
  stats (): ConnectionStats
}

/** The operations of guests on a connection. */
export interface ConnectionStats {
  /** Operations that have ended, by outcome: `OK`, or the code that the guest was told. */
  calls: Partial<Record<Operation, Partial<Record<'OK' | GuestErrorCode, number>>>>
  /** Operations that have not ended. Those that wait for a connection of a pool are among them. */
  running: number
}

/** The methods that `nats` needs of a connection of `@nats-io/transport-node`. */
export interface NatsClient {
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  publish (subject: string, payload?: any, options?: any): void
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  request (subject: string, payload?: any, options?: any): Promise<any>
  flush (): Promise<void>
  isClosed (): boolean
}

/** The methods that `postgres` needs of a `Pool` of `pg`. */
export interface PostgresPool {
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  connect (): Promise<any>
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  query (text: string, values?: any[]): Promise<any>
  options: { max?: number }
}

/** The permissions and limits of guests on a connection to NATS. */
export interface NatsOptions {
  /**
   * The subjects that guests may publish to. `*` stands for one token, `>` for one or more at the end. A wildcard in
   * the first place does not match tokens that begin with `$` or `_`, such as `$JS` and `_INBOX`.
   * @default []
   */
  publish?: string[]
  /**
   * The subjects that guests may send requests to, in the same form.
   * @default []
   */
  request?: string[]
  /**
   * The bytes that a message may have, headers included, and that an answer may have.
   * @default the server's limit
   */
  maxPayloadBytes?: number
  /**
   * The bytes that guests may publish ahead of the server. A guest that would exceed it waits until the server has
   * received what was published before.
   * @default 1048576 (1 MiB)
   */
  maxUnflushedBytes?: number
  /**
   * The longest that a guest waits for an answer, or for the server. The deadline of its call may end the wait earlier,
   * and so may the guest's own `timeoutMs`.
   * @default 30000
   */
  timeoutMs?: number
}

/** The permissions and limits of guests on a PostgreSQL database. */
export interface PostgresOptions {
  /**
   * The statements that guests may run: SQL by name, with parameters `$1`, `$2`, …. With `'any'`, guests send SQL of their
   * own; then the pool should be theirs alone, with a role that may do nothing else.
   */
  statements: Record<string, string> | 'any'
  /**
   * Whether each statement runs in a read-only transaction.
   * @default true
   */
  readOnly?: boolean
  /**
   * The rows that a result may have. A statement that exceeds it is canceled, and its changes are undone.
   * @default 1000
   */
  maxRows?: number
  /**
   * The bytes that the rows of a result may have, as JSON. A statement that exceeds it is canceled, and its changes are
   * undone. A single row is received as a whole before it is measured.
   * @default 1048576 (1 MiB)
   */
  maxBytes?: number
  /**
   * The longest that a statement may take, with the wait for a connection. The deadline of the guest's call may end it
   * earlier.
   * @default 30000
   */
  timeoutMs?: number
}

/** The methods that `redis` needs of a client of the package `redis`. */
export interface RedisClient {
  get (key: string): Promise<string | null>
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  set (key: string, value: string): Promise<any>
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  del (key: string): Promise<any>
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  publish (channel: string, message: any): Promise<any>
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  scanIterator (options?: any): AsyncIterable<string[]>
}

/**
 * The permissions and limits of guests on a Redis server. A name that ends with `*` stands for all that begin like it.
 */
export interface RedisOptions {
  /**
   * The keys that guests may read, such as `'visits:*'`.
   * @default []
   */
  read?: string[]
  /**
   * The keys that guests may set and delete.
   * @default []
   */
  write?: string[]
  /**
   * The channels that guests may publish to.
   * @default []
   */
  publish?: string[]
  /**
   * The bytes that a value or a message may have.
   * @default 1048576 (1 MiB)
   */
  maxValueBytes?: number
  /**
   * The keys that a list of keys may have.
   * @default 1000
   */
  maxKeys?: number
  /**
   * The longest that a guest waits for the server. The deadline of its call may end the wait earlier.
   * @default 30000
   */
  timeoutMs?: number
}

/** The operation that a guest wanted. `connect` and those on keys belong to slingshot's functions. */
export type Operation = 'publish' | 'request' | 'query' | 'execute' | 'connect' | 'get' | 'set' | 'delete' | 'keys'

/** The place of an error: the connection, as the guest named it, and the operation. */
export interface ErrorOrigin {
  connection: unknown
  operation: Operation
}

/** Options of `connect`. */
export interface ConnectOptions {
  /**
   * The bytes that the JSON of a request may have; the payload of a message does not count.
   * @default 1048576 (1 MiB)
   */
  maxRequestBytes?: number
  /**
   * Called with errors of brokers and databases. Guests are told codes only, because these errors may have hosts, users
   * and values in them. If it throws, the guest's call rejects with that value.
   */
  onError?: (error: unknown, origin: ErrorOrigin) => void
  /**
   * Adds the host functions of slingshot, `hostNatsPublish`, `hostRedisGet` and so on. Their `id` names a connection.
   * @default false
   */
  slingshot?: boolean
}

/** The host functions of slingshot. */
export type SlingshotFunction =
  | 'hostInitNatsConnection' | 'hostNatsPublish' | 'hostInitRedisClient' | 'hostRedisGet' | 'hostRedisSet' | 'hostRedisDel'
  | 'hostRedisFilter' | 'hostRedisPublish'

/** Takes the offset of a request, and returns that of a reply. */
export type ConnectFunction = (context: CallContext, offset: bigint) => string | Uint8Array | Promise<string | Uint8Array>

/** The host functions of `connect`, for the option `functions` of a plugin. */
export type ConnectFunctions = {
  'extism:host/user': Record<'hostPublish' | 'hostRequest' | 'hostQuery' | 'hostExecute', ConnectFunction>
    & Partial<Record<SlingshotFunction, ConnectFunction>>
}

/**
 * The codes of errors that guests are told, as `error.code` of a reply:
 *
 * - `INVALID_REQUEST`: the request is not what the function takes.
 * - `UNKNOWN_CONNECTION`: the host has no connection of this name.
 * - `UNSUPPORTED`: the connection does not have this operation.
 * - `NOT_ALLOWED`: the host, the broker or the database refuses this.
 * - `TOO_LARGE`: the request, the message, the answer or the result is too large.
 * - `TIMEOUT`: nobody has answered in time, or the statement took too long.
 * - `NO_RESPONDERS`: nobody subscribes to the subject of a request.
 * - `UNAVAILABLE`: the broker or the database cannot be reached.
 * - `INVALID_VALUE`: a parameter, or a value that SQL computes, is not valid for its type.
 * - `CONSTRAINT`: a constraint of the database is violated.
 * - `CONFLICT`: other transactions are in the way; a later attempt may succeed.
 * - `SQL_ERROR`: another error of the statement; `error.sqlstate` says which.
 * - `NOT_FOUND`: a key has no value.
 * - `INTERNAL`: a defect in the host.
 */
export type GuestErrorCode =
  | 'INVALID_REQUEST' | 'UNKNOWN_CONNECTION' | 'UNSUPPORTED' | 'NOT_ALLOWED' | 'TOO_LARGE' | 'TIMEOUT' | 'NO_RESPONDERS'
  | 'UNAVAILABLE' | 'INVALID_VALUE' | 'CONSTRAINT' | 'CONFLICT' | 'SQL_ERROR' | 'NOT_FOUND' | 'INTERNAL'

/**
 * Makes the host functions by which guests use connections. A guest names a connection by its key.
 *
 * @example
 * const functions = connect({ events: nats(connection, { publish: ['orders.*'] }) })
 * const plugin = await createPlugin('orders.wasm', { functions })
 */
export function connect (connections: Record<string, Connection>, options?: ConnectOptions): ConnectFunctions

/**
 * Lets guests publish and send requests on a connection of `@nats-io/transport-node`. The connection stays yours: nothing
 * here closes it.
 */
export function nats (connection: NatsClient, options?: NatsOptions): Connection

/**
 * Lets guests run statements on a `Pool` of `pg`, each in a transaction of its own. The pool stays yours: nothing here
 * ends it. It needs a `max` of 2 or more, because one connection stays free to cancel statements.
 */
export function postgres (pool: PostgresPool, options: PostgresOptions): Connection

/** The methods that `mqtt` needs of a client of `mqtt`. */
export interface MqttClient {
  readonly connected: boolean
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  publish (...args: any[]): any
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  publishAsync (...args: any[]): Promise<any>
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  subscribe (...args: any[]): any
}

/** The permissions and limits of guests on an MQTT broker. */
export interface MqttOptions {
  /**
   * The topics that guests may publish to. `+` stands for one level, `#` for any number at the end. A wildcard in the first
   * place does not match topics that begin with `$`, such as `$SYS/…`.
   * @default []
   */
  publish?: string[]
  /**
   * The topics whose messages guests may have retained, in the same form. Such a topic must match `publish`, too.
   * @default []
   */
  retain?: string[]
  /**
   * The bytes that a message may have.
   * @default 1048576 (1 MiB)
   */
  maxPayloadBytes?: number
  /**
   * The messages that may be on their way to the broker. A guest that would exceed it waits.
   * @default 100
   */
  maxUnacknowledged?: number
  /**
   * The longest that a guest waits for the broker. The deadline of its call may end the wait earlier.
   * @default 30000
   */
  timeoutMs?: number
}

/**
 * Lets guests publish on a client of `mqtt`. The client stays yours: nothing here closes it.
 *
 * @example
 * const functions = connect({ sensors: mqtt(client, { publish: ['sensors/+'] }) })
 */
export function mqtt (client: MqttClient, options?: MqttOptions): Connection

/**
 * Lets guests use keys and channels of a Redis server, on a client of the package `redis`: by `hostPublish`, with the channel
 * as `subject`, and by slingshot's functions. The client stays yours: nothing here closes it.
 *
 * @example
 * const functions = connect({ cache: redis(client, { read: ['news:*'], publish: ['news'] }) }, { slingshot: true })
 */
export function redis (client: RedisClient, options?: RedisOptions): Connection

/** The methods that a trigger needs of a connection of `@nats-io/transport-node`. */
export interface NatsSubscriber {
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  subscribe (subject: string, options?: any): any
  flush (): Promise<void>
}

/** A plugin of `createPlugin`, or one of `app.extism.plugin(name)`, which reloads do not change. */
export interface TriggeredPlugin {
  call (name: string, input: Uint8Array, hostContext: undefined, options?: CallOptions): Promise<PluginOutput | null>
}

/** Options of all triggers. */
export interface TriggerOptions<Origin> {
  /** The plugin to call. */
  plugin: TriggeredPlugin
  /** The function to call. Its input is a line of JSON about the message, and after that line the message. */
  function: string
  /**
   * The number of calls at the same time.
   * @default 16
   */
  concurrency?: number
  /** The milliseconds that a call may run, instead of the plugin's `timeoutMs`. */
  timeoutMs?: number
  /** Called with the error of a call, or of the broker. It must not throw. */
  onError: (error: unknown, origin: Origin) => void
}

/** Options of triggers that deliver a message again if its call fails. */
export interface RedeliveryOptions {
  /**
   * The number of calls for a message. If the last one fails, the message becomes a dead letter. It needs a destination for
   * dead letters. Without one, a message is delivered again until its call succeeds. Errors that say nothing about the message
   * (`CLOSED`, `QUEUE_FULL`, `UNAVAILABLE`, `OUT_OF_RESOURCES`, `STORE_UNAVAILABLE`) never make it a dead letter.
   * @default 5, with a destination for dead letters
   */
  maxDeliver?: number
  /**
   * The pauses before further calls, in milliseconds. The last one repeats.
   * @default [1000, 5000, 30000]
   */
  backoffMs?: number[]
}

/** The counters of a trigger. */
export interface TriggerStats {
  /** Messages that the broker has delivered; each delivery counts. */
  received: number
  /** Messages whose call has succeeded. */
  handled: number
  /** Calls that have failed. */
  failed: number
  /** Deliveries and calls after the first of a message. Some of these messages may have been handled before. */
  redelivered: number
  /** Messages that became dead letters. */
  deadLettered: number
  /** Messages that came when `maxPending` others were waiting, and that nobody delivers again. */
  dropped: number
  /** Calls that are running. */
  inFlight: number
  /** Messages that wait for a call. */
  pending: number
}

/** Calls a plugin for messages, until it is closed. */
export interface Trigger {
  /** Returns the counters since the trigger was made. */
  stats (): TriggerStats
  /** Resolves if the broker responds. It rejects, or does not resolve for now, if the broker is lost. */
  checkReady (): Promise<void>
  /**
   * Takes no further messages, and resolves once those that have come are handled. A connection that was passed stays open.
   */
  close (): Promise<void>
}

/** Options of `natsTrigger`. */
export interface NatsTriggerOptions extends TriggerOptions<{ subject: string }> {
  /** The subject to subscribe to, with wildcards if you like. */
  subject: string
  /** The queue group. Each message goes to one of its members, in whichever process that is. */
  queue?: string
  /**
   * The number of messages that may wait for a call. One more is dropped; its sender gets the error 503, `BUSY`.
   * @default 1000
   */
  maxPending?: number
}

/**
 * Calls a plugin for each message of a subject. Messages are delivered at most once, as always in NATS without JetStream: a
 * message whose call fails is not delivered again.
 *
 * The line of JSON is `{"subject": …, "headers": …}`. The function's output is the answer, if the sender waits for one. If the
 * call fails, the sender gets the headers `Nats-Service-Error-Code: 500` and `Nats-Service-Error` with the error's code.
 */
export function natsTrigger (connection: NatsSubscriber, options: NatsTriggerOptions): Trigger

/** Options of `jetStreamTrigger`. */
export interface JetStreamTriggerOptions extends TriggerOptions<{ subject: string }>, RedeliveryOptions {
  /** The stream. It must exist. */
  stream: string
  /**
   * The durable consumer. It is made if it is missing. Triggers that name the same one share its messages, in whichever
   * processes they are.
   */
  consumer: string
  /**
   * The subject of the messages, with wildcards if you like.
   * @default all messages of the stream
   */
  subject?: string
  /**
   * The milliseconds after the loss of a process until its messages are delivered again, if the trigger makes the consumer.
   * Calls may take longer.
   * @default 30000
   */
  ackWaitMs?: number
  /**
   * The subject of dead letters. A stream must store it. Without it, messages that can never succeed hold up the others once the
   * consumer's `max_ack_pending` of them wait for another call.
   */
  deadLetterSubject?: string
}

/**
 * Calls a plugin for each message of a stream, at least once: a message is acknowledged only after its call has succeeded, or
 * after its dead letter is stored. A message may come twice, for example if the process ends before its acknowledgement arrives.
 *
 * The line of JSON is `{"subject": …, "headers": …, "stream": …, "sequence": …, "delivery": …}`. `stream` and `sequence` identify a
 * message; `delivery` is 1 the first time. The function's output is ignored.
 *
 * @throws `INVALID_ARGUMENT` if the consumer exists and could lose messages, or if no stream stores the dead letters
 * @throws the client's error if the stream does not exist, or if the server cannot be reached
 * @example
 * const trigger = await jetStreamTrigger(connection, {
 *   stream: 'ORDERS', consumer: 'workers', plugin, function: 'order', deadLetterSubject: 'dead.orders', onError: console.error
 * })
 */
export function jetStreamTrigger (connection: NatsSubscriber, options: JetStreamTriggerOptions): Promise<Trigger>

/** A broker: its `url`, and options of `connect` of the package `mqtt`. */
export interface MqttBroker {
  url?: string
  // eslint-disable-next-line @typescript-eslint/no-explicit-any -- the types of an optional package
  [option: string]: any
}

/** Options of `mqttTrigger`. */
export interface MqttTriggerOptions extends TriggerOptions<{ topic: string }>, RedeliveryOptions {
  /**
   * The name of the session, in which the broker keeps messages while the trigger is not there. Each trigger of each process needs
   * its own, the same after each start.
   */
  clientId: string
  /** The topic to subscribe to, with wildcards if you like. Triggers with `$share/<group>/<topic>` share the messages. */
  topic: string
  /**
   * The messages that may wait for a call, also for another one after a failed one. One more with QoS 0 is dropped.
   * @default 1000
   */
  maxPending?: number
  /**
   * The topic of dead letters. Always set it: without it, one message that can never succeed holds up all others, because MQTT
   * requires acknowledgements in order. Somebody must subscribe to it, or the broker would drop them.
   */
  deadLetterTopic?: string
  /**
   * The topics at which senders may want answers (the property `responseTopic` of MQTT 5), with wildcards if you like. The
   * function's output is the answer.
   * @default []
   */
  replyTopics?: string[]
}

/**
 * Calls a plugin for each message of a topic, with QoS 1 at least once: a message is acknowledged only after its call has
 * succeeded, or after the broker has its dead letter. It opens a connection of its own, and closes it.
 *
 * The line of JSON is `{"topic": …, "headers": …, "redelivered": …}`. `headers` are the user properties of MQTT 5, and
 * `redelivered` tells whether the message may have been handled before.
 *
 * @throws `ACCESS_DENIED` if the broker refuses the subscription
 * @throws the client's error if the broker cannot be reached
 * @example
 * const trigger = await mqttTrigger('mqtt://localhost:1883', {
 *   clientId: 'meter-1', topic: 'sensors/+', plugin, function: 'measure', onError: console.error
 * })
 */
export function mqttTrigger (broker: string | MqttBroker, options: MqttTriggerOptions): Promise<Trigger>
