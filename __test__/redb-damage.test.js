'use strict'

// Files of stores that are damaged in every way that a disk, or somebody's editor, may damage them. What is
// tried comes from a seed; `DAMAGED_FILES` says how many files, `DAMAGED_SEED` which.

const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { basename, join } = require('node:path')
const { openStore } = require('..')
const { runNode } = require('./support/processes.js')
const { randomNumbers } = require('./support/random.js')

const FILES = Number(process.env.DAMAGED_FILES ?? 40)
/** Among the first files of this seed is one over which redb panics twice. */
const SEED = Number(process.env.DAMAGED_SEED ?? 9)
/** How many files a process tries, one after the other. */
const BATCH = 10
const PAGE = 4096
/** The first byte of a page that leads to others. */
const BRANCH = 2

function branchOf (bytes, below) {
  const pages = Array.from({ length: bytes.length / PAGE }, (_, index) => index * PAGE)
  const branches = pages.filter((start) => bytes[start] === BRANCH)
  return branches[below(branches.length)]
}

/** Each damages a file's bytes. */
const DAMAGES = {
  bytesOfOnePage (bytes, below) {
    const start = below(bytes.length / PAGE) * PAGE
    for (let i = 0; i < 8; i++) bytes[start + below(PAGE)] = below(256)
  },
  bytesOfThePageHeader (bytes, below) {
    const start = below(bytes.length / PAGE) * PAGE
    for (let i = 0; i < 8; i++) bytes[start + below(16)] = below(256)
  },
  bytesOfTheFileHeader (bytes, below) {
    for (let i = 0; i < 4; i++) bytes[below(512)] = below(256)
  },
  /** Where other pages are found: a wrong one may be of anything, or none. */
  bytesOfABranch (bytes, below) {
    const start = branchOf(bytes, below)
    for (let i = 0; i < 8; i++) bytes[start + 8 + below(600)] = below(256)
  },
  /** Panics in redb's destructors are about pages that are there twice. */
  aChildTwice (bytes, below) {
    const start = branchOf(bytes, below)
    const children = bytes.readUInt16LE(start + 2) + 1
    const child = () => start + 8 + 16 * children + 8 * below(children)
    const [from, to] = [child(), child()]
    bytes.copyWithin(to, from, from + 8)
  },
  oneBit (bytes, below) { bytes[below(bytes.length)] ^= 1 << below(8) },
  manyBits (bytes, below) {
    for (let i = 0; i < 2_000; i++) bytes[below(bytes.length)] ^= 1 << below(8)
  },
  aPageOfZeros (bytes, below) {
    const start = below(bytes.length / PAGE) * PAGE
    bytes.fill(0, start, start + PAGE)
  },
  aPageOfAnother (bytes, below) {
    const [from, to] = [below(bytes.length / PAGE) * PAGE, below(bytes.length / PAGE) * PAGE]
    bytes.copyWithin(to, from, from + PAGE)
  }
}

let directory
let good

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-damage-'))
  const file = join(directory, 'good.redb')
  const store = await openStore(`redb:${file}`)
  // The same file each time, but for when its keys end.
  const entries = (from, to) => Array.from({ length: to - from }, (_, index) => [`key:${from + index}`, Buffer.alloc((index * 37) % 3_000, index)])
  for (let start = 0; start < 1_000; start += 100) {
    await store.setMany(entries(start, start + 100), start % 200 === 0 ? { ttlMs: 3_600_000 } : undefined)
  }
  await store.deleteMany(entries(300, 350).map(([key]) => key))
  await store.close()
  good = readFileSync(file)
})

afterAll(() => rmSync(directory, { recursive: true, force: true }))

function damagedFile (number) {
  const random = randomNumbers(SEED * 1_000_003 + number)
  const below = (limit) => Math.floor(random() * Math.floor(limit))
  const names = Object.keys(DAMAGES)
  const name = names[number % names.length]
  const bytes = Buffer.from(good)
  DAMAGES[name](bytes, below)
  // Some are cut, too.
  const end = number % 11 === 10 ? below(bytes.length) : bytes.length
  const file = join(directory, `${number}-${name}.redb`)
  writeFileSync(file, bytes.subarray(0, end))
  return file
}

describe('a damaged file', () => {
  test('gives its contents or STORE_DAMAGED, and does not end the process', async () => {
    const outcomes = new Map()
    for (let number = 0; number < FILES; number += BATCH) {
      const files = Array.from({ length: Math.min(BATCH, FILES - number) }, (_, index) => damagedFile(number + index))
      const { code, signal, output, errors } = await runNode([join(__dirname, 'support/damaged-store.js'), ...files])
      const lines = output.trim().split('\n').map((line) => JSON.parse(line))
      const last = lines.findLast(({ file }) => file !== undefined)
      expect({ code, signal, errors, file: basename(last.file) }).toEqual({ code: 0, signal: null, errors: '', file: basename(files.at(-1)) })
      lines.filter(({ codes }) => codes !== undefined).forEach(({ codes }, index) => outcomes.set(basename(files[index]), codes))
      files.forEach((file) => rmSync(file))
    }
    const unexpected = [...outcomes].filter(([, codes]) => codes.some((code) => code !== null && code !== 'STORE_DAMAGED'))
    expect(unexpected).toEqual([])
    const isRefused = ([, codes]) => codes.includes('STORE_DAMAGED')
    expect([...outcomes].some(isRefused)).toBe(true)
  }, 60_000 + FILES * 2_000)
})
