'use strict'

// The channels of node:diagnostics_channel, on which others follow what plugins do. docs/reference/tracing.md
// describes them. Nothing is measured or recorded for a channel without subscribers.

const { channel, tracingChannel } = require('node:diagnostics_channel')

const channels = {
  call: tracingChannel('extism-host:call'),
  hostFunction: tracingChannel('extism-host:host-function'),
  reload: tracingChannel('extism-host:reload'),
  store: channel('extism-host:store'),
  http: channel('extism-host:http')
}

/** Whether anybody listens to a tracing channel. `TracingChannel.hasSubscribers` is missing in early versions of Node 20. */
function isTraced ({ start, end, asyncStart, asyncEnd, error }) {
  return start.hasSubscribers || asyncEnd.hasSubscribers || end.hasSubscribers || error.hasSubscribers || asyncStart.hasSubscribers
}

/** Whether anybody listens to what a call does. */
function isCallTraced () {
  return isTraced(channels.call) || channels.store.hasSubscribers || channels.http.hasSubscribers
}

/** Publishes what a call has done, and completes the message of the call. `summary` comes from the addon. */
function publishSummary (message, { queueMs, runMs, operations, droppedOperations }) {
  Object.assign(message, { queueMs, runMs, droppedOperations })
  for (const { offsetMs, durationMs, name, system, url, status, error } of operations) {
    const { plugin, version } = message
    const common = { call: message, plugin, version, startTime: message.startTime + offsetMs, durationMs, error }
    if (system !== undefined) channels.store.publish({ ...common, system, function: name })
    else channels.http.publish({ ...common, method: name, url, status })
  }
}

/**
 * Runs a function that may return a promise, and traces it until that settles. A subscriber of `start` may set
 * `message.around`, a function that runs the function in a context of its own.
 */
function traceFunction ({ start, end, asyncStart, asyncEnd, error }, message, work) {
  const failed = (reason) => {
    message.error = reason
    error.publish(message)
  }
  const settled = (settle) => (value) => {
    settle(value)
    asyncStart.publish(message)
    asyncEnd.publish(message)
  }
  return start.runStores(message, () => {
    try {
      const value = message.around === undefined ? work() : message.around(work)
      if (typeof value?.then === 'function') Promise.resolve(value).then(settled((result) => { message.result = result }), settled(failed))
      else message.result = value
      return value
    } catch (reason) {
      failed(reason)
      throw reason
    } finally {
      end.publish(message)
    }
  })
}

/** Traces the reload of a plugin of an app. `versionOf` returns the version that serves. */
function traceReload (plugin, versionOf, work) {
  if (!isTraced(channels.reload)) return work()
  const message = { plugin, version: versionOf(), newVersion: undefined }
  return channels.reload.tracePromise(async () => {
    await work()
    message.newVersion = versionOf()
  }, message)
}

module.exports = { channels, isCallTraced, isTraced, publishSummary, traceFunction, traceReload }
