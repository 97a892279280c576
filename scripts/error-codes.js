'use strict'

// Writes the error codes of docs/reference/error-codes.json into docs/reference/errors.md and into the type ErrorCode
// of index.d.ts. `--check` writes nothing, and fails if a file would change.

const { readFileSync, writeFileSync } = require('node:fs')
const { join } = require('node:path')

const ROOT = join(__dirname, '..')
const COLUMNS = 116

/** The groups of codes, in the order of the file: `[title, { CODE: { cause, remedy } }]`. */
const groups = Object.entries(JSON.parse(readFileSync(join(ROOT, 'docs/reference/error-codes.json'), 'utf8')))

/** The group of codes that are not in `ErrorCode`. */
const OTHERS = 'Not in ErrorCode'

function page () {
  const tables = groups.map(([title, codes]) => [
    `## ${title}`,
    '',
    '| code | cause | remedy |',
    '|---|---|---|',
    ...Object.entries(codes).map(([code, { cause, remedy }]) => `| <a id="${code.toLowerCase()}"></a>\`${code}\` | ${cause} | ${remedy} |`)
  ].join('\n'))
  return tables.join('\n\n')
}

function comment (text) {
  const oneLine = `  /** ${text} */`
  if (oneLine.length <= COLUMNS) return oneLine
  const lines = ['']
  for (const word of text.split(' ')) {
    const line = `${lines.at(-1)} ${word}`
    if (`   *${line}`.length > COLUMNS) lines.push(` ${word}`)
    else lines[lines.length - 1] = line
  }
  return ['  /**', ...lines.map((line) => `   *${line}`), '   */'].join('\n')
}

function type () {
  const members = groups.filter(([title]) => title !== OTHERS).flatMap(([, codes]) =>
    Object.entries(codes).flatMap(([code, { cause }]) => [comment(cause), `  | '${code}'`]))
  return members.join('\n')
}

const files = [
  ['docs/reference/errors.md', /(<!-- codes -->\n)[^]*?(<!-- end -->)/, `\n${page()}\n\n`],
  ['index.d.ts', /(export type ErrorCode =\n)[^]*?(\n\n)/, type()]
]

for (const [file, pattern, text] of files) {
  const path = join(ROOT, file)
  const before = readFileSync(path, 'utf8')
  const after = before.replace(pattern, (_, begin, end) => `${begin}${text}${end}`)
  if (after === before) continue
  if (process.argv.includes('--check')) {
    console.error(`${file} differs from docs/reference/error-codes.json: run node scripts/error-codes.js`)
    process.exitCode = 1
  } else {
    writeFileSync(path, after)
  }
}
