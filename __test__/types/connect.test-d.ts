import Fastify from 'fastify'
import { connect as openConnection } from '@nats-io/transport-node'
import { Pool } from 'pg'
import { expectAssignable, expectError, expectType } from 'tsd'
import { connectAsync } from 'mqtt'
import { connect, jetStreamTrigger, mqtt, mqttTrigger, nats, natsTrigger, postgres } from '@extism-host/connect'
import type { Connection, ConnectFunctions, GuestErrorCode, Operation, Trigger } from '@extism-host/connect'
import { createPlugin } from '../..'
import type { HostFunctions } from '../..'

const events = nats(await openConnection(), {
  publish: ['orders.*'], request: ['prices.>'], maxPayloadBytes: 1, maxUnflushedBytes: 1, timeoutMs: 1
})
expectType<Connection>(events)
expectType<number | undefined>(events.stats().calls.publish?.OK)
expectType<number>(events.stats().running)
const db = postgres(new Pool(), { statements: { one: 'SELECT 1' }, readOnly: false, maxRows: 1, maxBytes: 1, timeoutMs: 1 })
expectType<Connection>(postgres(new Pool(), { statements: 'any' }))

const functions = connect({ events, db }, {
  maxRequestBytes: 1,
  onError (error, { connection, operation }) {
    expectType<unknown>(error)
    expectType<unknown>(connection)
    expectType<Operation>(operation)
  }
})
expectType<ConnectFunctions>(functions)
expectAssignable<HostFunctions>(functions)
createPlugin('orders.wasm', { functions: { 'extism:host/user': { ...functions['extism:host/user'], more: () => 0 } } })
expectAssignable<GuestErrorCode>('TIMEOUT')

expectError(connect({ events: {} }))
expectError(nats({}))
expectError(nats(await openConnection(), { publish: 'orders.*' }))
expectError(postgres(new Pool(), { statements: 'all' }))
expectError(postgres(new Pool(), {}))

const trigger = natsTrigger(await openConnection(), {
  subject: 'orders.>', queue: 'workers', plugin: await createPlugin('orders.wasm'), function: 'order', concurrency: 1, maxPending: 0, timeoutMs: 1, onError () {}
})
expectType<Trigger>(trigger)
expectType<number>(trigger.stats().dropped)
expectType<Promise<void>>(trigger.close())
natsTrigger(await openConnection(), { subject: 'orders.>', plugin: Fastify().extism.plugin('orders'), function: 'order', onError: console.error })
expectError(natsTrigger(await openConnection(), { subject: 'orders.>', function: 'order', onError () {} }))
expectError(natsTrigger(await openConnection(), { subject: 'orders.>', plugin: await createPlugin('orders.wasm'), function: 'order' }))

expectType<Connection>(mqtt(await connectAsync('mqtt://localhost'), { publish: ['a/+'], retain: [], maxPayloadBytes: 1, maxUnacknowledged: 1, timeoutMs: 1 }))
expectError(mqtt({}))

const common = { plugin: await createPlugin('orders.wasm'), function: 'order', concurrency: 1, timeoutMs: 1, maxDeliver: 1, backoffMs: [1], onError () {} }
const orders = await jetStreamTrigger(await openConnection(), {
  ...common, stream: 'ORDERS', consumer: 'workers', subject: 'orders.*', ackWaitMs: 1, deadLetterSubject: 'dead.orders'
})
expectType<Trigger>(orders)
expectType<number>(orders.stats().redelivered)
expectType<Promise<void>>(orders.checkReady())
expectError(jetStreamTrigger(await openConnection(), { ...common, stream: 'ORDERS' }))

const sensors = await mqttTrigger({ url: 'mqtt://localhost', username: 'a' }, {
  ...common, clientId: 'a', topic: 'sensors/+', maxPending: 1, deadLetterTopic: 'dead', replyTopics: ['replies/+'], onError (error, { topic }) { expectType<string>(topic) }
})
expectType<Trigger>(sensors)
expectError(mqttTrigger('mqtt://localhost', { ...common, topic: 'sensors/+' }))
