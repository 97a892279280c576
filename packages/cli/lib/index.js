'use strict'

// The command `extism-host`: what there is, and what becomes of errors.

const { Argument, Command, Option } = require('commander')
const { version } = require('../package.json')
const { addCompileFlags, addPluginFlags, number } = require('./plugin-flags.js')
const { UsageError } = require('./usage-error.js')

/** The exit code where the command was used wrongly; that of anything else that goes wrong is 1. */
const WRONG_USE = 2

/** Each command is loaded when it is used, so that none waits for what only others need. */
function program () {
  const program = new Command('extism-host')
    .description('Runs Extism plugins: calls them, serves them over HTTP, and looks into them.')
    .version(version)
    .showHelpAfterError('(--help says more)')
    .exitOverride((error) => { throw Object.assign(error, { exitCode: error.exitCode === 0 ? 0 : WRONG_USE }) })

  addPluginFlags(program.command('call')
    .description('Calls a function of a plugin, and writes its output as it is.')
    .argument('<plugin>', 'a .wasm file, a .json manifest, or the URL of either')
    .argument('<function>')
    .option('-i, --input <text>', 'the input')
    .option('--stdin', 'take the input from standard input')
    .option('--loop <times>', 'call it so often', number, 1))
    .action((...args) => require('./call.js').call(...args))

  addPluginFlags(program.command('serve')
    .description('Serves plugins over HTTP: those of a configuration file, or one function at POST /.')
    .addArgument(new Argument('[plugin]', 'a .wasm file, a .json manifest, or the URL of either').argOptional())
    .argument('[function]')
    .option('-c, --config <file>', 'a configuration file, YAML or JSON')
    .option('-p, --port <port>', 'where to listen; 0 for any that is free', number)
    .option('--host <host>', 'where to listen')
    .option('--content-type <type>', 'the type of the answers')
    .option('--watch', 'load a plugin, or the configuration, again when its file changes'))
    .action((...args) => require('./serve.js').serve(...args))

  program.command('inspect')
    .description('Says what a plugin exports, imports and needs. Nothing of it runs.')
    .argument('<plugin>', 'a .wasm file')
    .option('--json', 'for programs')
    .addOption(new Option('--stub <language>', 'write a module with the host functions that it needs, to be filled in').choices(['js', 'ts']))
    .action((...args) => require('./inspect.js').inspect(...args))

  addCompileFlags(program.command('compile')
    .description('Fills the compile cache, so that plugins start in milliseconds later.')
    .argument('[plugins...]', '.wasm files, or .json manifests')
    .option('-c, --config <file>', 'the plugins of a configuration, as serve will open them')
    .option('--cache-dir <directory>', 'where the cache is, in place of the usual place'))
    .action((...args) => require('./compile.js').compile(...args))

  return program
}

/** Messages name options of createPlugin; of those that have a flag, the flag. */
function inTermsOfFlags (message) {
  return message.replaceAll('pass `useWasi: true`', 'pass --wasi (in a configuration, `wasi: true`)')
}

/** Runs the command line. Errors are one line on standard error, the code first. */
async function main (argv) {
  // Who reads the output, such as `head`, may have read enough.
  process.stdout.on('error', (error) => { if (error.code === 'EPIPE') process.exit(0) })
  try {
    await program().parseAsync(argv)
  } catch (error) {
    if (error.exitCode !== undefined) {
      // commander has said it.
      process.exitCode = error.exitCode
      return
    }
    const isUsage = error instanceof UsageError
    // Errors of the system have their code in their message already.
    const hasCode = isUsage || error.code === undefined || error.message.includes(error.code)
    console.error(`extism-host: ${hasCode ? '' : `${error.code}: `}${inTermsOfFlags(error.message)}`)
    process.exitCode = isUsage ? WRONG_USE : 1
  }
  // Host functions may have left timers or connections open.
  if (argv[2] === 'call') process.stdout.write('', () => process.exit())
}

module.exports = { main }
