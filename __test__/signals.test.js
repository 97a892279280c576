'use strict'

// A plugin's trap is a signal of the processor. It must become an error, whatever the program does with
// such signals itself.

const { runNode } = require('./support/processes.js')

/** Runs `body` in a process of its own, with a function `traps` that makes plugins trap in every way. */
function run (body) {
  return runNode(['-e', `
    const { assemble } = require('./__test__/support/guest.js')
    const { createPlugin } = require('.')
    const SIGNALS = ['SIGILL', 'SIGFPE', 'SIGSEGV', 'SIGBUS']
    const ignore = () => {}
    ;(async () => {
      const wasm = await assemble(\`(module (memory 1)
        (func (export "stop") unreachable)
        (func (export "divide") (drop (i32.div_s (i32.const 1) (i32.load (i32.const 0)))))
        (func (export "outside") (drop (i32.load (i32.const 0x7ffffff0))))
        (func $deep (export "deep") (call $deep))
        (func (export "well")))\`)
      const plugin = await createPlugin(wasm)
      async function traps () {
        for (const name of ['stop', 'divide', 'outside', 'deep']) {
          const error = await plugin.call(name).catch((error) => error)
          if (error?.code !== 'TRAP') throw new Error(name + ': ' + error)
        }
        await plugin.call('well')
      }
      ${body}
    })()`])
}

const ended = (output) => ({ code: 0, signal: null, output: `${output}\n`, errors: '' })

test('a trap stays a trap while the program handles the signals, and after it no longer does', async () => {
  expect(await run(`
    await traps()
    for (const signal of SIGNALS) process.on(signal, ignore)
    await traps()
    for (const signal of SIGNALS) process.off(signal, ignore)
    await traps()
    for (const signal of SIGNALS) process.once(signal, ignore)
    await traps()
    for (const signal of SIGNALS) process.removeAllListeners(signal)
    await traps()
    console.log('well')
    await plugin.close()`)).toEqual(ended('well'))
})

test('a trap stays a trap beside close-with-grace and its defaults', async () => {
  expect(await run(`
    const grace = require('close-with-grace')({ logger: false }, () => plugin.close())
    await traps()
    grace.uninstall()
    await traps()
    console.log('well')
    await plugin.close()`)).toEqual(ended('well'))
})

test('a signal from outside reaches the handler of the program', async () => {
  expect(await run(`
    process.on('SIGSEGV', () => { console.log('mine'); plugin.close().then(() => process.exit(0)) })
    await traps()
    process.kill(process.pid, 'SIGSEGV')
    setTimeout(() => {}, 10_000)`)).toEqual(ended('mine'))
})

test('a signal from outside that nobody handles ends the process as it would without plugins', async () => {
  expect(await run(`
    process.on('SIGSEGV', ignore)
    process.off('SIGSEGV', ignore)
    await traps()
    process.kill(process.pid, 'SIGSEGV')
    setTimeout(() => {}, 10_000)`)).toMatchObject({ code: null, signal: 'SIGSEGV' })
})
