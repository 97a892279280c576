'use strict'

// A module with the host functions that a plugin imports, for somebody to fill in.

const { printable } = require('./printable.js')

const TYPES = { i32: 'number', i64: 'bigint', f32: 'number', f64: 'number' }
/** A string or bytes become a block, whose offset the guest gets. */
const RESULTS = { ...TYPES, i64: 'bigint | string | Uint8Array' }

/** Text in a string of single quotes: the module chose it, so it may be anything. */
const escaped = (text) => printable(text.replace(/[\\']/g, '\\$&'))

/** A name as a property. */
function property (name) {
  if (name === '__proto__') return "['__proto__']"
  return /^[A-Za-z_$][\w$]*$/.test(name) ? name : `'${escaped(name)}'`
}

const signature = ({ params, results }) => params === undefined ? '' : `(${params.join(', ')}) -> ${results.length === 1 ? results[0] : `(${results.join(', ')})`}`

function method ({ name, params = [], results = [] }, isTyped) {
  const typed = (parameter, type) => isTyped ? `${parameter}: ${type}` : parameter
  const parameters = params.map((type, index) => typed(`arg${index}`, TYPES[type] ?? 'never'))
  const result = isTyped ? `: ${RESULTS[results[0]] ?? 'void'}` : ''
  return [
    `    // ${signature({ params, results })}`,
    ...params.flatMap((type, index) => type === 'i64' ? [`    // If arg${index} is the offset of a block, context.read(arg${index}).text() is its text.`] : []),
    `    ${property(name)} (${[typed('context', 'CallContext'), ...parameters].join(', ')})${result} {`,
    `      throw new Error('${escaped(name)} is not written yet')`,
    '    }'
  ].join('\n')
}

/** The source of such a module, in JavaScript or, with `ts`, in TypeScript. */
function stub (hostFunctions, language) {
  const isTyped = language === 'ts'
  const functions = hostFunctions.filter(({ kind }) => kind === 'function')
  const unique = [...new Map(functions.map((one) => [JSON.stringify([one.namespace, one.name]), one])).values()]
  const namespaces = [...new Set(unique.map(({ namespace }) => namespace))].map((namespace) => {
    const methods = unique.filter((one) => one.namespace === namespace).map((one) => method(one, isTyped))
    return `  ${property(namespace)}: {\n${methods.join(',\n\n')}\n  }`
  })
  const body = `{\n${namespaces.join(',\n')}\n}`
  return isTyped
    ? `import type { CallContext, HostFunctions } from 'extism-host'\n\nexport default ${body} satisfies HostFunctions`
    : `'use strict'\n\nmodule.exports = ${body}`
}

module.exports = { signature, stub }
