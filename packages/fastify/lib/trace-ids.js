'use strict'

// The trace of a request, for the log: with OpenTelemetry's API installed and a span active.

function loadApi () {
  try {
    return require('@opentelemetry/api')
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error
    return undefined
  }
}

const api = loadApi()

/** The ids of the active span under the names that OpenTelemetry's log instrumentations use; nothing if there is none. */
function traceIds () {
  const active = api?.trace.getActiveSpan()?.spanContext()
  if (active === undefined || !api.isSpanContextValid(active)) return {}
  return { trace_id: active.traceId, span_id: active.spanId }
}

module.exports = { traceIds }
