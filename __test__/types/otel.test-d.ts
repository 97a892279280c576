import { channel, tracingChannel } from 'node:diagnostics_channel'
import { NodeTracerProvider } from '@opentelemetry/sdk-trace-node'
import { expectError, expectType } from 'tsd'
import { ExtismHostInstrumentation } from '@extism-host/otel'
import type { ExtismHostInstrumentationConfig } from '@extism-host/otel'
import type { CallTrace, HostFunctionTrace, HttpRequestTrace, PluginOutput, ReloadTrace, StoreOperationTrace } from '../..'

const instrumentation = new ExtismHostInstrumentation({ enabled: false })
expectType<string>(instrumentation.instrumentationName)
instrumentation.setTracerProvider(new NodeTracerProvider())
instrumentation.enable()
instrumentation.disable()
expectType<ExtismHostInstrumentationConfig>(instrumentation.getConfig())
expectError(new ExtismHostInstrumentation({ enable: false }))

tracingChannel<unknown, CallTrace>('extism-host:call').start.subscribe((message) => {
  const call = message as CallTrace
  call.traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
  expectType<number | undefined>(call.queueMs)
  expectType<PluginOutput | null | undefined>(call.result)
})
channel('extism-host:store').subscribe((message) => {
  expectType<'memory' | 'redb' | 'redis'>((message as StoreOperationTrace).system)
  expectType<CallTrace>((message as StoreOperationTrace).call)
})
channel('extism-host:http').subscribe((message) => expectType<number | undefined>((message as HttpRequestTrace).status))
declare const hostFunction: HostFunctionTrace
hostFunction.around = (work) => work()
declare const reload: ReloadTrace
expectType<string | undefined>(reload.newVersion)
