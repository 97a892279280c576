'use strict'

// Turns the tracing channels of extism-host into OpenTelemetry spans.

const diagnosticsChannel = require('node:diagnostics_channel')
const { context, propagation, SpanKind, SpanStatusCode, trace } = require('@opentelemetry/api')
const { name, version } = require('../package.json')

/** Spans of unfinished calls, host functions and reloads, by the message of their channel. */
const entries = new WeakMap()

/** The error type of a failure without a code, as the conventions say. */
const OTHER = '_OTHER'

function setError (span, type, message) {
  span.setAttribute('error.type', type)
  span.setStatus({ code: SpanStatusCode.ERROR, message })
}

/** Attributes of everything that a plugin does. */
function pluginAttributes ({ plugin, version }) {
  return { 'extism.plugin.name': plugin, 'extism.plugin.version': version }
}

/** Handlers for a tracing channel. `open` starts the span, and `complete` adds what is known at the end. */
function spanHandlers (open, complete = () => {}) {
  const end = (message) => {
    const entry = entries.get(message)
    if (entry === undefined) return
    entries.delete(message)
    complete(entry.span, message)
    entry.span.end()
  }
  return {
    start (message) {
      const startedAt = Date.now()
      const parent = context.active()
      const span = open(message, parent)
      entries.set(message, { span, startedAt, context: trace.setSpan(parent, span) })
    },
    error (message) {
      const span = entries.get(message)?.span
      if (span === undefined) return
      const { error } = message
      span.recordException(error instanceof Error ? error : String(error))
      setError(span, error?.code ?? OTHER, error?.message)
    },
    // A promise is still pending at its `end`.
    end (message) {
      if (Object.hasOwn(message, 'result') || Object.hasOwn(message, 'error')) end(message)
    },
    asyncEnd: end
  }
}

/** The channels, with what to do on each. `tracer` returns the tracer. */
function subscriptions (tracer) {
  /** The context of the call that a host function belongs to. An initialization has none. */
  const contextOf = ({ call }, active) => entries.get(call ?? {})?.context ?? active

  const call = spanHandlers(
    (message, parent) => tracer().startSpan(`${message.plugin} ${message.function}`, {
      attributes: { ...pluginAttributes(message), 'code.function.name': message.function, 'extism.input.bytes': message.inputBytes }
    }, parent),
    (span, { queueMs, runMs, droppedOperations, result }) => {
      if (queueMs !== undefined) span.setAttribute('extism.queue.duration_ms', queueMs)
      if (runMs !== undefined) span.setAttribute('extism.run.duration_ms', runMs)
      if (droppedOperations > 0) span.setAttribute('extism.dropped_operations', droppedOperations)
      if (result !== undefined) span.setAttribute('extism.output.bytes', result?.byteLength ?? 0)
    }
  )
  const hostFunction = spanHandlers((message, active) => tracer().startSpan(message.function, {
    attributes: { ...pluginAttributes(message), 'code.function.name': `${message.namespace}.${message.function}` }
  }, contextOf(message, active)))
  const reload = spanHandlers((message, parent) => tracer().startSpan(`reload ${message.plugin}`, {
    attributes: { 'extism.plugin.name': message.plugin, 'extism.plugin.version.before': message.version }
  }, parent), (span, { newVersion }) => {
    if (newVersion !== undefined) span.setAttribute('extism.plugin.version', newVersion)
  })

  /** Makes the span of an operation that has ended. */
  const operation = (message, spanName, attributes, onSpan) => {
    const entry = entries.get(message.call)
    if (entry === undefined || !entry.span.isRecording()) return
    const startTime = entry.startedAt + message.startTime - message.call.startTime
    const span = tracer().startSpan(spanName, {
      kind: SpanKind.CLIENT, startTime, attributes: { ...pluginAttributes(message), ...attributes }
    }, entry.context)
    onSpan(span)
    span.end(startTime + message.durationMs)
  }

  return {
    tracing: {
      'extism-host:call': {
        ...call,
        start (message) {
          call.start(message)
          const carrier = {}
          propagation.inject(entries.get(message).context, carrier)
          message.traceparent = carrier.traceparent
        }
      },
      'extism-host:host-function': {
        ...hostFunction,
        start (message) {
          hostFunction.start(message)
          const { context: own } = entries.get(message)
          message.around = (work) => context.with(own, work)
        }
      },
      'extism-host:reload': reload
    },
    plain: {
      'extism-host:store' (message) {
        operation(message, `${message.function} ${message.system}`, {
          'db.system.name': message.system, 'db.operation.name': message.function
        }, (span) => {
          if (message.error !== undefined) setError(span, message.error)
        })
      },
      'extism-host:http' (message) {
        const { hostname, port, protocol } = new URL(message.url)
        operation(message, message.method, {
          'http.request.method': message.method,
          'url.full': message.url,
          'server.address': hostname,
          'server.port': Number(port) || (protocol === 'https:' ? 443 : 80)
        }, (span) => {
          const { status, error } = message
          if (status === undefined) return setError(span, OTHER, error)
          span.setAttribute('http.response.status_code', status)
          if (status >= 400) setError(span, String(status))
        })
      }
    }
  }
}

class ExtismHostInstrumentation {
  instrumentationName = name
  instrumentationVersion = version
  #config
  #provider = trace
  #tracer
  #subscriptions = subscriptions(() => { this.#tracer ??= this.#provider.getTracer(name, version); return this.#tracer })
  #isEnabled = false

  constructor (config = {}) {
    this.#config = { enabled: true, ...config }
    if (this.#config.enabled) this.enable()
  }

  enable () {
    if (this.#isEnabled) return
    this.#isEnabled = true
    const { tracing, plain } = this.#subscriptions
    for (const [channel, handlers] of Object.entries(tracing)) diagnosticsChannel.tracingChannel(channel).subscribe(handlers)
    for (const [channel, handler] of Object.entries(plain)) diagnosticsChannel.subscribe(channel, handler)
  }

  disable () {
    if (!this.#isEnabled) return
    this.#isEnabled = false
    const { tracing, plain } = this.#subscriptions
    for (const [channel, handlers] of Object.entries(tracing)) diagnosticsChannel.tracingChannel(channel).unsubscribe(handlers)
    for (const [channel, handler] of Object.entries(plain)) diagnosticsChannel.unsubscribe(channel, handler)
  }

  setTracerProvider (provider) {
    this.#provider = provider
    this.#tracer = undefined
  }

  // There are no metrics; those of extism-host/fastify are for Prometheus.
  setMeterProvider () {}

  getConfig () {
    return this.#config
  }

  setConfig (config) {
    this.#config = { enabled: true, ...config }
  }
}

module.exports = { ExtismHostInstrumentation }
