'use strict'

// Prints the licences of all crates in the binary, with their texts, as BSD, MIT and Apache require.

const { execFileSync } = require('node:child_process')
const { readFileSync, readdirSync } = require('node:fs')
const { dirname, join } = require('node:path')

const LICENCE = /^(licen[cs]e|copying|notice|unlicense)/i

function metadata () {
  const args = ['metadata', '--format-version', '1', '--locked']
  return JSON.parse(execFileSync('cargo', args, { cwd: join(__dirname, '..'), encoding: 'utf8', maxBuffer: 1 << 30, stdio: ['ignore', 'pipe', 'inherit'] }))
}

/** The packages that are compiled into the library, without those that only build or test it. */
function linked ({ packages, resolve: { nodes, root } }) {
  const byId = new Map(nodes.map((node) => [node.id, node]))
  const found = new Set()
  const queue = [root]
  for (let id = queue.pop(); id !== undefined; id = queue.pop()) {
    if (found.has(id)) continue
    found.add(id)
    for (const { pkg, dep_kinds: kinds } of byId.get(id).deps) {
      if (kinds.some(({ kind }) => kind === null)) queue.push(pkg)
    }
  }
  found.delete(root)
  return packages.filter(({ id }) => found.has(id)).sort((a, b) => a.name < b.name ? -1 : 1)
}

function texts ({ manifest_path: manifest }) {
  const directory = dirname(manifest)
  return readdirSync(directory, { withFileTypes: true })
    .filter((entry) => entry.isFile() && LICENCE.test(entry.name))
    .map(({ name }) => readFileSync(join(directory, name), 'utf8').replaceAll('\r\n', '\n').trim())
}

function main () {
  const names = new Map()
  console.log('# Third-party licences\n\nThe binary contains these libraries.\n')
  for (const found of linked(metadata())) {
    const name = `${found.name} ${found.version}`
    console.log(`* ${name}: ${found.license ?? 'see its text'}${found.repository ? `, <${found.repository}>` : ''}`)
    for (const text of texts(found)) names.set(text, [...(names.get(text) ?? []), name])
  }
  for (const [text, users] of names) console.log(`\n## ${users.join(', ')}\n\n${text.replace(/^/gm, '    ').replace(/ +$/gm, '')}`)
}

main()
