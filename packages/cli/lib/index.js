'use strict'

// The command `extism-host`: its subcommands, options and exit codes.

const { Argument, Command, Option } = require('commander')
const { version } = require('../package.json')
const { addCompileFlags, addPluginFlags, number } = require('./plugin-flags.js')
const { UsageError } = require('./usage-error.js')

/** The exit code for wrong usage. Any other failure exits with 1. */
const USAGE_ERROR = 2

/** Loads each subcommand on use, so that none pays for the dependencies of the others. */
function program () {
  const program = new Command('extism-host')
    .description('Call, serve, inspect and compile Extism plugins.')
    .version(version)
    .showHelpAfterError('(run with --help for all options)')
    .exitOverride((error) => { throw Object.assign(error, { exitCode: error.exitCode === 0 ? 0 : USAGE_ERROR }) })

  addPluginFlags(program.command('call')
    .description('Call a function of a plugin, and write its output to standard output.')
    .argument('<plugin>', 'a .wasm file, a .json manifest, or the URL of either')
    .argument('<function>')
    .option('-i, --input <text>', 'the input')
    .option('--stdin', 'read the input from standard input')
    .option('--loop <times>', 'call the function this many times', number, 1))
    .action((...args) => require('./call.js').call(...args))

  addPluginFlags(program.command('serve')
    .description('Serve plugins over HTTP: the routes of a configuration file, or one function at POST /.')
    .addArgument(new Argument('[plugin]', 'a .wasm file, a .json manifest, or the URL of either').argOptional())
    .argument('[function]')
    .option('-c, --config <file>', 'a configuration file in YAML or JSON')
    .option('-p, --port <port>', 'the port to listen on; 0 for any free port', number)
    .option('--host <host>', 'the address to listen on')
    .option('--content-type <type>', 'the content-type of the responses')
    .option('--watch', 'reload plugins and the configuration when their files change'))
    .action((...args) => require('./serve.js').serve(...args))

  addPluginFlags(program.command('dev')
    .description('Build and serve a plugin while you write it, with a page to try it, and reload it when a file changes.')
    .argument('<plugin>', 'a .wasm file, a .json manifest, or a directory: its newest .wasm file')
    .option('--build <command>', 'build with this shell command, in the directory or else in the current one, when a file there changes')
    .option('-p, --port <port>', 'the port to listen on, at 127.0.0.1 only; 0 for any free port', number)
    .option('--content-type <type>', 'the content-type of the responses'))
    .action((...args) => require('./dev.js').dev(...args))

  program.command('new')
    .description('Create the project of a plugin, with a test.')
    .argument('<directory>', 'a new directory, whose name is also that of the project')
    .addOption(new Option('--lang <language>', 'the language of the plugin').choices(['go', 'rust', 'assemblyscript']).makeOptionMandatory())
    .action((...args) => require('./new.js').create(...args))

  program.command('inspect')
    .description('Show the exports, imports and required permissions of a plugin, without running it.')
    .argument('<plugin>', 'a .wasm file')
    .option('--json', 'print JSON')
    .addOption(new Option('--stub <language>', 'print a module with empty host functions for the plugin').choices(['js', 'ts']))
    .action((...args) => require('./inspect.js').inspect(...args))

  addCompileFlags(program.command('compile')
    .description('Fill the compile cache, so that plugins later start in milliseconds.')
    .argument('[plugins...]', '.wasm files, or .json manifests')
    .option('-c, --config <file>', 'compile the plugins of a configuration for serve')
    .option('--cache-dir <directory>', 'the directory of the cache, instead of the default'))
    .action((...args) => require('./compile.js').compile(...args))

  program.command('types')
    .description('Write the TypeScript types of a plugin from the schema of its functions.')
    .argument('<schema>', 'a schema of XTP (v1-draft) in YAML, or a JSON Schema whose properties are the functions')
    .option('-o, --output <file>', 'write to this file instead of standard output')
    .option('--name <name>', 'the name of the interface, instead of that of the file')
    .action((...args) => require('./types.js').types(...args))

  program.command('config')
    .description('Work with a configuration file of serve.')
    .command('check')
    .description('Check a configuration file without serving it.')
    .argument('<file>', 'a configuration file in YAML or JSON')
    .action((...args) => require('./config-check.js').check(...args))

  return program
}

/** Replaces options of createPlugin in a message by the flags of the command line. */
function withFlagNames (message) {
  return message.replaceAll('pass `useWasi: true`', 'pass --wasi (in a configuration, `wasi: true`)')
}

/** Runs the command line. An error prints one line on standard error, which begins with its code. */
async function main (argv) {
  // The reader of the output, such as `head`, may stop reading.
  process.stdout.on('error', (error) => { if (error.code === 'EPIPE') process.exit(0) })
  try {
    await program().parseAsync(argv)
  } catch (error) {
    if (error.exitCode !== undefined) {
      // commander has printed the message.
      process.exitCode = error.exitCode
      return
    }
    const isUsage = error instanceof UsageError
    // Messages of system errors contain their code.
    const hasCode = isUsage || error.code === undefined || error.message.includes(error.code)
    console.error(`extism-host: ${hasCode ? '' : `${error.code}: `}${withFlagNames(error.message)}`)
    process.exitCode = isUsage ? USAGE_ERROR : 1
  }
  // Host functions may have left timers or connections open.
  if (argv[2] === 'call') process.stdout.write('', () => process.exit())
}

module.exports = { main }
