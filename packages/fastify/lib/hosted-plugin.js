'use strict'

const { createPlugin } = require('extism-host')
const { TIMED_CALL, asBytes, codedError, invalidArgument } = require('extism-host/internal')
const { addCounters } = require('./counters.js')
const { codeOf } = require('./errors.js')
const { describeUpload, withMainModule } = require('./uploads.js')

/** A plugin of an app, by name. A reload replaces the version that serves its calls, not this object. */
class HostedPlugin {
  #definition
  #plugin
  /** The serving version: when it was opened, and its upload. */
  #version
  /** Closing waits for these: the last reload, and replaced versions that still have calls. */
  #lastReload = Promise.resolve()
  #retiring = new Map()
  /** The counters of closed versions. */
  #retired
  #versions = 1
  #closed
  #observer
  #trackUnavailable
  /** The last `UNAVAILABLE` error, and the number of stuck threads at that time. */
  #lastUnavailable

  constructor (definition, version) {
    this.#definition = definition
    this.#plugin = version.plugin
    this.#version = version
  }

  // Choosing the version and starting the call happen in one step, so no call reaches a closed version.
  call (functionName, input, hostContext, options) {
    const call = this.#call(functionName, input, hostContext, options)
    if (this.#trackUnavailable !== undefined) call.catch(this.#trackUnavailable)
    return call
  }

  #call (functionName, input, hostContext, options) {
    if (this.#observer === undefined) return this.#plugin.call(functionName, input, hostContext, options)
    const times = { queueMs: undefined, runMs: undefined }
    const start = performance.now()
    const call = this.#plugin[TIMED_CALL](functionName, input, hostContext, options, times)
    const onEnd = (code) => this.#observer(functionName, code, (performance.now() - start) / 1e3, times)
    call.then(() => onEnd('OK'), (error) => onEnd(options?.signal?.aborted ? 'CANCELED' : codeOf(error)))
    return call
  }

  /** Calls `observer` when a call ends, with its function, `OK` or its error's code, its duration in seconds, and its times. */
  observe (observer) {
    this.#observer = observer
  }

  /** For operators: its name, when the serving version was opened, and its upload or `null`. */
  describe () {
    const { openedAt, upload } = this.#version
    return { name: this.#definition.name, openedAt: openedAt.toISOString(), upload: upload ?? null }
  }

  stats () {
    return this.#plugin.stats()
  }

  /** The current `stats()` with the counters of all versions, and the number of versions. */
  statsOfAllVersions () {
    const current = this.#plugin.stats()
    const before = [...this.#retiring.keys()].map((plugin) => plugin.stats())
    return { ...[this.#retired, ...before].reduce((stats, other) => addCounters(stats, other), current), versions: this.#versions }
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
    return this.#enqueue(async () => this.adopt(this.#definition, await openVersion(this.#definition)))
  }

  /** Like `reload`, with these bytes as the module. If they are accepted, keeps them for later reloads and starts. */
  upload (bytes) {
    return this.#enqueue(async () => {
      const definition = this.#definition
      const version = await openVersion(definition, bytes)
      try {
        await definition.uploads.keep(definition.name, bytes)
      } catch (error) {
        await version.plugin.close()
        throw error
      }
      this.adopt(definition, version)
    })
  }

  #enqueue (work) {
    const reload = this.#lastReload.then(() => {
      this.#checkOpen()
      if (this.#definition.external !== undefined) {
        throw codedError('UNSUPPORTED', 'a plugin that was passed as a Plugin cannot be reloaded; pass its source instead')
      }
      return work()
    })
    this.#lastReload = reload.catch(() => {})
    return reload
  }

  /** Resolves when no reload is running. */
  get idle () {
    return this.#lastReload
  }

  /** Sends all later calls to this version. Closes the previous one, unless the app passed it as a Plugin. */
  adopt (definition, version) {
    const before = this.#plugin
    const wasExternal = this.#definition.external !== undefined
    this.#definition = definition
    this.#plugin = version.plugin
    this.#version = version
    this.#lastUnavailable = undefined
    this.#versions++
    const retire = () => {
      this.#retired = addCounters(before.stats(), this.#retired)
      this.#retiring.delete(before)
    }
    if (wasExternal) return retire()
    this.#retiring.set(before, before.close().finally(retire))
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

/**
 * Opens a version, and checks its functions and its smoke call. If a check fails, closes it and rejects. Its main module
 * is `uploaded`, else the upload that has been kept, else that of its source.
 */
async function openVersion ({ name, external, source, options, functions, hostFunctions, smoke, uploads }, uploaded) {
  if (external === undefined && uploaded === undefined) {
    const kept = await uploads?.read(name)
    if (kept !== undefined) return openKept({ name, source, options, functions, hostFunctions, smoke, uploads }, kept)
  }
  const plugin = external ?? await createPlugin(uploaded === undefined ? source : withMainModule(source, uploaded), { ...options, functions: await hostFunctions() })
  try {
    for (const one of functions) {
      if (!await plugin.functionExists(one)) throw invalidArgument(`it has no function "${one}", which a route or a trigger calls`)
    }
    if (smoke !== undefined) await runSmokeCall(plugin, smoke)
    return { plugin, openedAt: new Date(), upload: uploaded && describeUpload(uploaded) }
  } catch (error) {
    if (external === undefined) await plugin.close()
    throw error
  }
}

/** The configured module may be fine: an error names the file that is in its place. */
async function openKept (definition, bytes) {
  try {
    return await openVersion(definition, bytes)
  } catch (cause) {
    const { code, message } = cause
    throw Object.assign(new Error(`${message} (its module was uploaded to ${definition.uploads.path(definition.name)})`, { cause }), { code })
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
