import Fastify from 'fastify'
import { connect as openConnection } from '@nats-io/transport-node'
import { Pool } from 'pg'
import { expectAssignable, expectError, expectType } from 'tsd'
import { connect, nats, natsTrigger, postgres } from '@extism-host/connect'
import type { Connection, ConnectFunctions, GuestErrorCode, NatsTrigger } from '@extism-host/connect'
import { createPlugin } from '../..'
import type { HostFunctions } from '../..'

const events = nats(await openConnection(), {
  publish: ['orders.*'], request: ['prices.>'], maxPayloadBytes: 1, maxUnflushedBytes: 1, timeoutMs: 1
})
expectType<Connection>(events)
const db = postgres(new Pool(), { statements: { one: 'SELECT 1' }, readOnly: false, maxRows: 1, maxBytes: 1, timeoutMs: 1 })
expectType<Connection>(postgres(new Pool(), { statements: 'any' }))

const functions = connect({ events, db }, {
  maxRequestBytes: 1,
  onError (error, { connection, operation }) {
    expectType<unknown>(error)
    expectType<unknown>(connection)
    expectType<'publish' | 'request' | 'query' | 'execute'>(operation)
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
expectType<NatsTrigger>(trigger)
expectType<number>(trigger.stats().dropped)
expectType<Promise<void>>(trigger.close())
natsTrigger(await openConnection(), { subject: 'orders.>', plugin: Fastify().extism.plugin('orders'), function: 'order', onError: console.error })
expectError(natsTrigger(await openConnection(), { subject: 'orders.>', function: 'order', onError () {} }))
expectError(natsTrigger(await openConnection(), { subject: 'orders.>', plugin: await createPlugin('orders.wasm'), function: 'order' }))
