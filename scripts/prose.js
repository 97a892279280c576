'use strict'

// Checks the prose of documents and comments against the style in CONTRIBUTING.md, with a few rules that give no false
// alarms: `node scripts/prose.js [files]`. It skips text between `<!-- prose: off -->` and `<!-- prose: on -->`.

const { execFileSync } = require('node:child_process')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')

const ROOT = join(__dirname, '..')

/** The files to check, as arguments of `git ls-files`. */
const FILES = [
  '*.md', 'docs/reference/error-codes.json', 'index.js', 'index.d.ts', 'server.js', 'bin/*.js', 'lib/*.js', 'packages/*.js', 'packages/*.ts',
  'packages/cli/lib/config.schema.json', 'bench/*.js', 'examples/*.js', 'scripts/*.js', 'build.rs', 'src/*.rs'
]

/** Patterns that a sentence must not match, with advice. `LABEL`s may match the doc comment of an item in Rust, which may be a phrase. */
const LABEL = true
const RULES = [
  [/(?<!\bthere )\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|fewer\b|later\b)\w+/i, 'write "is not a …"'],
  [/^(?:What|Who|Whoever|How (?:many|much|long|often))\b(?!.*\?$).{12,}/, 'name the thing that the clause stands for', LABEL],
  [/^Of what\b/, 'name the thing'],
  [/\b(?:for|of|to|by|from|with) (?:those|that) (?:who|which|that)\b/i, 'name the thing'],
  [/\bwhat (?:is|was|are|were) (?:asked|given|said|needed|wanted|left)\b/i, 'name the thing'],
  [/^To \w+ (?:it|them|that) \w+s\b/, 'begin with the subject: "Closing it also closes …"'],
  [/(?<!times )\bas long as\b.*\b(?:not|no|nobody|nothing)\b/i, 'write "until"'],
  [/\bas (?:it is|they are)(?=[.,;:)]|$)/i, 'write "unchanged"'],
  [/^Where\b(?!.*\?$)/, 'write "if", or name the place', LABEL],
  [/\bwhere (?:there (?:is|are|was|were)|it (?:is|was) (?:not|none|missing)|it (?:does|has|cannot)|they (?:do|have)|one cannot|nobody|nothing|possible)\b/i, 'write "if"'],
  [/\b(?:fails? in anything|gets? ready|takes? away how|does what is)\b/i, 'say what happens'],
  [/\blet(?:s|ting)? (?:\w+ )?in\b/i, 'write "rejects the credentials"'],
  [/\brooms?\b/i, 'write "space", or "module"'],
  [/\bhouses?\b/i, 'write "module"'],
  [/\bfor ever\b/i, 'write "forever"'],
  [/\bdear(?:er)?\b/i, 'write "expensive"'],
  [/\b(?:simply|obviously|of course|basically|needless to say)\b/i, 'leave it out'],
  [/^(?:Which|Reads|Writes|Sets|Gets|It|Them|So)\.$/, 'delete the filler']
]

const blank = (text) => text.replace(/[^\n]/g, ' ')
const withoutQuoted = (text) => text
  .replace(/<!-- prose: off -->[^]*?<!-- prose: on -->/g, blank)
  .replace(/^```[^]*?^```$/gm, blank)
  .replace(/`[^`\n]*(?:\n[^`\n]*)?`/g, (code) => code.replace(/[^\n]/g, 'x'))

/** The paragraphs, items and cells of Markdown, without headings, which may be phrases. */
function ofMarkdown (text) {
  return withoutQuoted(text)
    .replace(/^---\n[^]*?\n---\n/, blank)
    .replace(/<!--[^]*?-->|\]\([^)\n]*\)|^#.*$|^ {4,}\S.*$/gm, blank)
    .replace(/[[\]]/g, ' ')
    .replace(/^(?:\s*)(?:[*-]|\d+\.)\s/gm, (marker) => `${blank(marker.slice(0, -1))}\0`)
    .replace(/\|/g, '\0').replace(/\n(?=\s*\n)/g, '\n\0').replaceAll('**', '  ')
}

/** The comments of JavaScript, TypeScript and Rust. */
function ofSource (text) {
  const comments = text.replace(/\/\*[^]*?\*\/|\/\/.*$|[^\n]/gm, (part) => /^\/[/*]/.test(part) ? part : ' ')
  return withoutQuoted(comments)
    .replace(/\/\/+!?|\*\/|\/\*+/g, (mark) => mark.startsWith('//') ? blank(mark) : `${blank(mark.slice(1))}\0`)
    .replace(/^\s*\*/gm, blank)
    .replace(/^\s*@\w+.*$/gm, blank)
    .replace(/\n(?=\s*\n)/g, '\n\0').replace(/^\s*- /gm, (marker) => `${blank(marker.slice(1))}\0`)
}

const ofJson = (text) => withoutQuoted(text.replace(/"/g, '\0'))

/** The sentences that break a rule: `{ line, sentence, advice }`. */
function problems (text, kind) {
  const found = []
  const isLabel = (line) => kind === 'rs' && /^\s*\/\/\//.test(lines[line - 1])
  const lines = text.split('\n')
  const prose = { md: ofMarkdown, json: ofJson }[kind] ?? ofSource
  let line = 1
  for (const block of prose(text).split('\0')) {
    for (const part of block.split(/(?<=[.!?:;]["')]*)(?=\s)/)) {
      const at = line + /^\s*/.exec(part)[0].split('\n').length - 1
      const sentence = part.trim().replace(/\s+/g, ' ')
      const rule = RULES.find(([pattern, , mayBeLabel]) => pattern.test(sentence) && !(mayBeLabel && isLabel(at)))
      if (rule !== undefined) found.push({ line: at, sentence, advice: rule[1] })
      line += part.split('\n').length - 1
    }
  }
  return found
}

function main (files) {
  const names = files.length > 0
    ? files
    : execFileSync('git', ['ls-files', ...FILES], { cwd: ROOT, encoding: 'utf8' }).split('\n').filter((name) => name !== '')
  for (const name of names) {
    for (const { line, sentence, advice } of problems(readFileSync(join(ROOT, name), 'utf8'), name.split('.').at(-1))) {
      console.error(`${name}:${line}: ${advice}: ${sentence}`)
      process.exitCode = 1
    }
  }
}

if (require.main === module) main(process.argv.slice(2))

module.exports = { problems }
