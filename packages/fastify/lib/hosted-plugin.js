'use strict'

const { createPlugin } = require('extism-host')
const { asBytes, codedError, invalidArgument } = require('extism-host/internal')
const { codeOf } = require('./errors.js')

/** One of an app's plugins: by its name it stays the same, whichever version of it serves its calls. */
class HostedPlugin {
  #definition
  #plugin
  /** What is to be waited for before the app is closed: the last reload, and versions that have calls left. */
  #lastReload = Promise.resolve()
  #leaving = new Map()
  #closed
  #observer
  #noteRefusal
  /** The last `UNAVAILABLE`, and how many threads were stuck then. */
  #refusal

  constructor (definition, plugin) {
    this.#definition = definition
    this.#plugin = plugin
  }

  // What is called and which version is called are one step: no call meets a version that is closed.
  call (functionName, input, hostContext, options) {
    const call = this.#call(functionName, input, hostContext, options)
    if (this.#noteRefusal !== undefined) call.catch(this.#noteRefusal)
    return call
  }

  #call (functionName, input, hostContext, options) {
    if (this.#observer === undefined) return this.#plugin.call(functionName, input, hostContext, options)
    const start = performance.now()
    const call = this.#plugin.call(functionName, input, hostContext, options)
    const over = (code) => this.#observer(functionName, code, (performance.now() - start) / 1e3)
    call.then(() => over('OK'), (error) => over(options?.signal?.aborted ? 'CANCELED' : codeOf(error)))
    return call
  }

  /** Has each call that ends told: its function, `OK` or the code of its error, and how many seconds it took. */
  observe (observer) {
    this.#observer = observer
  }

  stats () {
    return this.#plugin.stats()
  }

  /** Has `checkReady` know of calls that were refused. */
  noteRefusals () {
    this.#noteRefusal = (error) => {
      if (error?.code !== 'UNAVAILABLE') return
      const { busy, abandonedThreads } = this.stats()
      this.#refusal = { error, busy, abandonedThreads }
    }
  }

  /** Rejects if it is closed, or if all of its threads have been stuck since it refused a call. */
  async checkReady () {
    await this.#plugin.functionExists('')
    if (this.#refusal === undefined) return
    const { busy, abandonedThreads } = this.stats()
    if (busy >= this.#refusal.busy && abandonedThreads >= this.#refusal.abandonedThreads) throw this.#refusal.error
    this.#refusal = undefined
  }

  /** Has a new version serve all further calls, if it can be opened. One reload follows the other. */
  reload () {
    const reload = this.#lastReload.then(() => this.#reload())
    this.#lastReload = reload.catch(() => {})
    return reload
  }

  async #reload () {
    this.#checkOpen()
    if (this.#definition.given !== undefined) {
      throw codedError('UNSUPPORTED', 'a plugin that was given as a Plugin cannot be loaded again; give its source')
    }
    this.adopt(this.#definition, await openVersion(this.#definition))
  }

  /** Resolves when no reload is under way. */
  get idle () {
    return this.#lastReload
  }

  /** All further calls go to this version. The one before is closed, unless it was given. */
  adopt (definition, plugin) {
    const before = this.#plugin
    const wasGiven = this.#definition.given !== undefined
    this.#definition = definition
    this.#plugin = plugin
    this.#refusal = undefined
    if (wasGiven) return
    this.#leaving.set(before, before.close().finally(() => this.#leaving.delete(before)))
  }

  /** Ends all calls, and those that are left of earlier versions. A Plugin that was given is left alone. */
  endCalls () {
    for (const before of this.#leaving.keys()) before.close({ timeoutMs: 0 })
    if (this.#definition.given === undefined) this.#plugin.close({ timeoutMs: 0 })
  }

  #checkOpen () {
    if (this.#closed !== undefined) throw codedError('CLOSED', 'the plugin is closed')
  }

  /** A Plugin that was given is left to who has made it. */
  close () {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close () {
    await this.#lastReload
    await Promise.all(this.#leaving.values())
    if (this.#definition.given === undefined) await this.#plugin.close()
  }
}

/** A version that has all that is asked of it; or nothing is left of it. */
async function openVersion ({ given, source, options, functions, smoke }) {
  const plugin = given ?? await createPlugin(source, options)
  try {
    for (const name of functions) {
      if (!await plugin.functionExists(name)) throw invalidArgument(`it has no function "${name}", which a route calls`)
    }
    if (smoke !== undefined) await tryOut(plugin, smoke)
    return plugin
  } catch (error) {
    if (given === undefined) await plugin.close()
    throw error
  }
}

async function tryOut (plugin, { functionName, input, expect, timeoutMs }) {
  let output
  try {
    output = await plugin.call(functionName, input, undefined, { timeoutMs })
  } catch (cause) {
    throw Object.assign(new Error(`its smoke call failed: ${cause.message}`, { cause }), { code: 'SMOKE_FAILED' })
  }
  if (expect === undefined) return
  const bytes = Buffer.from(output === null ? [] : output.bytes())
  if (!bytes.equals(typeof expect === 'string' ? Buffer.from(expect) : asBytes(expect))) {
    throw codedError('SMOKE_FAILED', 'its smoke call had another output than expected')
  }
}

module.exports = { HostedPlugin, openVersion }
