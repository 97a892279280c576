'use strict'

// A trap stays an error, whatever signal handlers the program has, and its handlers still get the
// signals that are not a guest's. Handlers belong to the process, so each program runs in its own.

const { assemble } = require('./support/guest.js')
const { runNode } = require('./support/processes.js')

// How the processor reports these depends on its architecture, so each of them is tried with each signal.
const TRAPS = ['unreachable', 'divide', 'out_of_bounds', 'recurse']

const describeUnix = process.platform === 'win32' ? describe.skip : describe

let wasm

beforeAll(async () => {
  wasm = await assemble(`(module
    (memory 1)
    (global $zero (mut i32) (i32.const 0))
    (func (export "unreachable") unreachable)
    (func (export "divide") (drop (i32.div_u (i32.const 1) (global.get $zero))))
    (func (export "out_of_bounds") (drop (i32.load (i32.const -8))))
    (func $recurse (export "recurse") (result i32) (i32.add (call $recurse) (i32.const 1)))
    (func (export "fine"))
    (func (export "spin") (local $left i32)
      (local.set $left (i32.const 200000000))
      (loop $again
        (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))`)
})

/** Runs a program; `before` runs before the first plugin is open, `code` after it. */
function run (code, before = '') {
  return runNode(['-e', `
    const { createPlugin } = require('.')
    const SIGNALS = ['SIGILL', 'SIGSEGV', 'SIGFPE', 'SIGBUS']
    const listener = () => { console.log('heard') }
    const open = (options) => createPlugin(Buffer.from('${wasm.toString('base64')}', 'base64'), options)
    async function expectTraps (plugin) {
      for (const name of ${JSON.stringify(TRAPS)}) {
        const error = await plugin.call(name).catch((error) => error)
        if (error?.code !== 'TRAP') throw new Error(name + ' did not trap', { cause: error })
        await plugin.call('fine')
      }
    }
    ${before}
    open({ instances: 2 }).then(async (plugin) => {
      ${code}
    })`])
}

const ENDED_WELL = { code: 0, signal: null, output: 'done\n', errors: '' }

describeUnix('a trap is an error', () => {
  test('with no listeners, and the process exits by itself', async () => {
    expect(await run("await expectTraps(plugin); console.log('done')")).toEqual(ENDED_WELL)
  })

  test('with listeners that were added before', async () => {
    const before = 'for (const signal of SIGNALS) process.on(signal, listener)'
    expect(await run("await expectTraps(plugin); console.log('done')", before)).toEqual(ENDED_WELL)
  })

  test('with listeners that are added after the first plugin, at once and later', async () => {
    expect(await run(`
      for (const signal of SIGNALS) process.on(signal, listener)
      await expectTraps(plugin)
      await new Promise(setImmediate)
      await expectTraps(plugin)
      const another = await open()
      await expectTraps(another)
      console.log('done')`)).toEqual(ENDED_WELL)
  })

  test('after listeners were removed, in each way', async () => {
    expect(await run(`
      const ways = [
        (signal) => process.off(signal, listener),
        (signal) => process.removeAllListeners(signal),
        () => process.removeAllListeners()
      ]
      for (const remove of ways) {
        for (const signal of SIGNALS) process.once(signal, listener)
        await expectTraps(plugin)
        for (const signal of SIGNALS) remove(signal)
        await expectTraps(plugin)
      }
      console.log('done')`)).toEqual(ENDED_WELL)
  })

  test('while listeners come and go between calls', async () => {
    expect(await run(`
      for (let round = 0; round < 20; round++) {
        for (const signal of SIGNALS) process.on(signal, listener)
        await expectTraps(plugin)
        for (const signal of SIGNALS) process.off(signal, listener)
        await expectTraps(plugin)
      }
      console.log('done')`)).toEqual(ENDED_WELL)
  })

  test('at any moment while listeners come and go', async () => {
    expect(await run(`
      let isOver = false
      const trapping = ['unreachable', 'divide', 'out_of_bounds'].map(async (name) => {
        while (!isOver) {
          const error = await plugin.call(name).catch((error) => error)
          if (error?.code !== 'TRAP') throw new Error(name + ' did not trap', { cause: error })
        }
      })
      for (let round = 0; round < 2_000; round++) {
        for (const signal of SIGNALS) process.on(signal, listener)
        await new Promise(setImmediate)
        for (const signal of SIGNALS) process.off(signal, listener)
        await new Promise(setImmediate)
      }
      isOver = true
      await Promise.all(trapping)
      console.log('done')`)).toEqual(ENDED_WELL)
  })

  test('in a synchronous call, on the thread of JavaScript', async () => {
    expect(await run(`
      for (const signal of SIGNALS) process.on(signal, listener)
      for (const name of ${JSON.stringify(TRAPS)}) {
        try {
          plugin.callSync(name)
          throw new Error(name + ' did not trap')
        } catch (error) {
          if (error.code !== 'TRAP') throw error
        }
      }
      console.log('done')`)).toEqual(ENDED_WELL)
  })

  test('with the defaults of close-with-grace, installed after the server listens', async () => {
    expect(await run(`
      const closeWithGrace = require('close-with-grace')
      const app = require('fastify')()
      app.get('/:name', (request) => plugin.call(request.params.name).then(() => 'no error', (error) => error.code))
      await app.listen({ port: 0, host: '127.0.0.1' })
      const trapsOverHttp = async () => {
        for (const name of ${JSON.stringify(TRAPS)}) {
          const response = await fetch('http://127.0.0.1:' + app.server.address().port + '/' + name)
          if (await response.text() !== 'TRAP') throw new Error(name + ' did not trap')
        }
      }
      closeWithGrace({ logger: false }, async ({ signal }) => {
        // By now it has removed its listeners and added others.
        await expectTraps(plugin)
        await app.close()
        await plugin.close()
        console.log('done')
      })
      await trapsOverHttp()
      await trapsOverHttp()
      process.kill(process.pid, 'SIGTERM')`)).toMatchObject({ signal: null, output: 'done\n', errors: '' })
  })

  test('in a worker thread, and in the main thread after it has ended', async () => {
    expect(await run(`
      const { Worker } = require('node:worker_threads')
      for (const signal of SIGNALS) process.on(signal, listener)
      const worker = new Worker(\`
        const { createPlugin } = require('.')
        const { parentPort, workerData } = require('node:worker_threads')
        process.on('SIGILL', () => {})
        createPlugin(Buffer.from(workerData)).then(async (plugin) => {
          parentPort.postMessage(await plugin.call('unreachable').catch((error) => error.code))
          await plugin.close()
        })\`, { eval: true, workerData: Buffer.from('${wasm.toString('base64')}', 'base64') })
      const exited = new Promise((resolve) => worker.once('exit', resolve))
      const message = await new Promise((resolve) => worker.once('message', resolve))
      if (message !== 'TRAP') throw new Error('it did not trap: ' + message)
      await exited
      await expectTraps(plugin)
      console.log('done')`)).toEqual(ENDED_WELL)
  })
})

describeUnix('a signal that is not a guest\'s', () => {
  test.each(['SIGSEGV', 'SIGILL', 'SIGFPE'])('reaches the program\'s listener: %s', async (signal) => {
    expect(await run(`
      process.on('${signal}', () => { console.log('done'); process.exit() })
      await expectTraps(plugin)
      // While a guest runs: a signal that was sent is not its trap.
      plugin.call('spin').catch((error) => console.log(error.code))
      require('node:child_process').spawn('kill', ['-${signal.slice(3)}', String(process.pid)])
      setTimeout(() => {}, 10_000)`)).toEqual(ENDED_WELL)
  })

  test('reaches a listener in the turn of the event loop that adds it', async () => {
    const ended = await run(`
      process.on('SIGFPE', () => {
        console.log('heard')
        process.exit()
      })
      process.kill(process.pid, 'SIGFPE')
      setTimeout(() => {}, 10_000)`)
    expect(ended).toEqual({ ...ENDED_WELL, output: 'heard\n' })
  })

  test.each(['SIGSEGV', 'SIGILL', 'SIGFPE'])('ends a process without a listener: %s', async (signal) => {
    const send = `process.kill(process.pid, '${signal}'); setTimeout(() => {}, 10_000)`
    expect((await run(`await expectTraps(plugin); ${send}`)).signal).toBe(signal)
    expect((await run(`
      process.on('${signal}', listener)
      process.off('${signal}', listener)
      await expectTraps(plugin)
      ${send}`)).signal).toBe(signal)
  })

  test('can be a trap of WebAssembly in JavaScript, which stays a RuntimeError', async () => {
    expect(await run(`
      const { exports } = new WebAssembly.Instance(new WebAssembly.Module(Buffer.from('${wasm.toString('base64')}', 'base64')))
      for (const name of ['unreachable', 'divide', 'out_of_bounds']) {
        try {
          exports[name]()
        } catch (error) {
          if (!(error instanceof WebAssembly.RuntimeError)) throw error
          console.log(name)
        }
      }
      await expectTraps(plugin)`)).toMatchObject({ code: 0, output: 'unreachable\ndivide\nout_of_bounds\n', errors: '' })
  })
})
