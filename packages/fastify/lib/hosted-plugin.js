'use strict'

const { createPlugin } = require('extism-host')
const { asBytes, codedError, invalidArgument } = require('extism-host/internal')
const { codeOf } = require('./errors.js')

/** A plugin of an app, by name. A reload replaces the version that serves its calls, not this object. */
class HostedPlugin {
  #definition
  #plugin
  /** Closing waits for these: the last reload, and replaced versions that still have calls. */
  #lastReload = Promise.resolve()
  #retiring = new Map()
  #closed
  #observer
  #trackUnavailable
  /** The last `UNAVAILABLE` error, and the number of stuck threads at that time. */
  #lastUnavailable

  constructor (definition, plugin) {
    this.#definition = definition
    this.#plugin = plugin
  }

  // Choosing the version and starting the call happen in one step, so no call reaches a closed version.
  call (functionName, input, hostContext, options) {
    const call = this.#call(functionName, input, hostContext, options)
    if (this.#trackUnavailable !== undefined) call.catch(this.#trackUnavailable)
    return call
  }

  #call (functionName, input, hostContext, options) {
    if (this.#observer === undefined) return this.#plugin.call(functionName, input, hostContext, options)
    const start = performance.now()
    const call = this.#plugin.call(functionName, input, hostContext, options)
    const onEnd = (code) => this.#observer(functionName, code, (performance.now() - start) / 1e3)
    call.then(() => onEnd('OK'), (error) => onEnd(options?.signal?.aborted ? 'CANCELED' : codeOf(error)))
    return call
  }

  /** Calls `observer` when a call ends, with its function, `OK` or its error's code, and its duration in seconds. */
  observe (observer) {
    this.#observer = observer
  }

  stats () {
    return this.#plugin.stats()
  }

  /** Makes `checkReady` take calls into account that failed with UNAVAILABLE. */
  trackUnavailable () {
    this.#trackUnavailable = (error) => {
      if (error?.code !== 'UNAVAILABLE') return
      const { busy, abandonedThreads } = this.stats()
      this.#lastUnavailable = { error, busy, abandonedThreads }
    }
  }

  /** Rejects if the plugin is closed, or if its threads have been stuck since a call failed with UNAVAILABLE. */
  async checkReady () {
    await this.#plugin.functionExists('')
    if (this.#lastUnavailable === undefined) return
    const { busy, abandonedThreads } = this.stats()
    if (busy >= this.#lastUnavailable.busy && abandonedThreads >= this.#lastUnavailable.abandonedThreads) throw this.#lastUnavailable.error
    this.#lastUnavailable = undefined
  }

  /** Opens a new version, and sends all later calls to it. Reloads run one after the other. */
  reload () {
    const reload = this.#lastReload.then(() => this.#reload())
    this.#lastReload = reload.catch(() => {})
    return reload
  }

  async #reload () {
    this.#checkOpen()
    if (this.#definition.external !== undefined) {
      throw codedError('UNSUPPORTED', 'a plugin that was passed as a Plugin cannot be reloaded; pass its source instead')
    }
    this.adopt(this.#definition, await openVersion(this.#definition))
  }

  /** Resolves when no reload is running. */
  get idle () {
    return this.#lastReload
  }

  /** Sends all later calls to this version. Closes the previous one, unless the app passed it as a Plugin. */
  adopt (definition, plugin) {
    const before = this.#plugin
    const wasExternal = this.#definition.external !== undefined
    this.#definition = definition
    this.#plugin = plugin
    this.#lastUnavailable = undefined
    if (wasExternal) return
    this.#retiring.set(before, before.close().finally(() => this.#retiring.delete(before)))
  }

  /** Ends all calls, including those of replaced versions. Does nothing to a Plugin that the app passed. */
  endCalls () {
    for (const before of this.#retiring.keys()) before.close({ timeoutMs: 0 })
    if (this.#definition.external === undefined) this.#plugin.close({ timeoutMs: 0 })
  }

  #checkOpen () {
    if (this.#closed !== undefined) throw codedError('CLOSED', 'the plugin is closed')
  }

  /** A Plugin that the app passed stays open: its creator closes it. */
  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    await this.#lastReload
    await Promise.all(this.#retiring.values())
    if (this.#definition.external === undefined) await this.#plugin.close()
  }
}

/** Opens a version, and checks its functions and its smoke call. If a check fails, closes it and rejects. */
async function openVersion ({ external, source, options, functions, smoke }) {
  const plugin = external ?? await createPlugin(source, options)
  try {
    for (const name of functions) {
      if (!await plugin.functionExists(name)) throw invalidArgument(`it has no function "${name}", which a route calls`)
    }
    if (smoke !== undefined) await runSmokeCall(plugin, smoke)
    return plugin
  } catch (error) {
    if (external === undefined) await plugin.close()
    throw error
  }
}

async function runSmokeCall (plugin, { functionName, input, expect, timeoutMs }) {
  let output
  try {
    output = await plugin.call(functionName, input, undefined, { timeoutMs })
  } catch (cause) {
    throw Object.assign(new Error(`its smoke call failed: ${cause.message}`, { cause }), { code: 'SMOKE_FAILED' })
  }
  if (expect === undefined) return
  const bytes = Buffer.from(output === null ? [] : output.bytes())
  if (!bytes.equals(typeof expect === 'string' ? Buffer.from(expect) : asBytes(expect))) {
    throw codedError('SMOKE_FAILED', 'the output of its smoke call is not the expected one')
  }
}

module.exports = { HostedPlugin, openVersion }
