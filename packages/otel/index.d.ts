import type { MeterProvider, TracerProvider } from '@opentelemetry/api'

/** The configuration of an instrumentation. */
export interface ExtismHostInstrumentationConfig {
  /**
   * Whether spans are made from the start.
   * @defaultValue true
   */
  enabled?: boolean
}

/**
 * Makes OpenTelemetry spans of the calls of plugins, with children for host functions in JavaScript, operations of
 * stores and guests' HTTP requests. The parent of a call is the span that is active when the call starts.
 * @example
 * ```js
 * const { NodeSDK } = require('@opentelemetry/sdk-node')
 * const { ExtismHostInstrumentation } = require('extism-host/otel')
 *
 * new NodeSDK({ instrumentations: [new ExtismHostInstrumentation()] }).start()
 * ```
 */
export class ExtismHostInstrumentation {
  /** The name of this package. */
  readonly instrumentationName: string
  /** The version of this package. */
  readonly instrumentationVersion: string
  /** Makes spans from now on, unless `enabled` is `false`. */
  constructor (config?: ExtismHostInstrumentationConfig)
  /** Makes spans from now on. */
  enable (): void
  /** Makes no more spans. Nothing is measured any longer if nobody else listens to the channels. */
  disable (): void
  /**
   * Makes later spans with this provider, instead of the global one.
   * @param provider the SDK's provider
   */
  setTracerProvider (provider: TracerProvider): void
  /**
   * Does nothing: there are no metrics.
   * @param provider is ignored
   */
  setMeterProvider (provider: MeterProvider): void
  /** Returns the configuration. */
  getConfig (): ExtismHostInstrumentationConfig
  /**
   * Replaces the configuration. `enable` and `disable` have the effect.
   * @param config the new configuration
   */
  setConfig (config: ExtismHostInstrumentationConfig): void
}
