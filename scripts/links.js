'use strict'

// Checks the relative links of the documents: each must lead to a file of this repository and, after #, to one of its
// headings. It skips absolute links, so it needs no network.

const { execFileSync } = require('node:child_process')
const { existsSync, readFileSync } = require('node:fs')
const { dirname, join } = require('node:path')

const ROOT = join(__dirname, '..')

const withoutCode = (text) => text.replace(/^```[^]*?^```$/gm, '').replace(/`[^`\n]*`/g, (code) => code.replace(/[[\]()]/g, ''))

/** The fragments of a document's headings, as GitHub and VitePress generate them. */
function fragments (path) {
  const text = withoutCode(readFileSync(path, 'utf8'))
  const headings = [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading.replace(/\[([^\]]*)\]\([^)]*\)/g, '$1').toLowerCase().replace(/[^\p{L}\p{N}_ -]/gu, '').replaceAll(' ', '-'))
  const anchors = [...text.matchAll(/<a id="([^"]+)">/g)].map(([, id]) => id)
  return new Set([...headings, ...anchors])
}

const documents = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '*.md'], { cwd: ROOT, encoding: 'utf8' })
  .split('\n').filter((file) => file !== '' && existsSync(join(ROOT, file)))

for (const file of documents) {
  for (const [, target] of withoutCode(readFileSync(join(ROOT, file), 'utf8')).matchAll(/\]\(([^()\s]+)\)/g)) {
    if (/^[a-z]+:/.test(target)) continue
    const [name, fragment] = target.split('#')
    const path = name === '' ? join(ROOT, file) : join(ROOT, dirname(file), name)
    const problem = !existsSync(path)
      ? 'there is no such file'
      : fragment !== undefined && path.endsWith('.md') && !fragments(path).has(fragment) ? 'there is no such heading' : undefined
    if (problem === undefined) continue
    console.error(`${file}: ${target}: ${problem}`)
    process.exitCode = 1
  }
}
