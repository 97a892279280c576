'use strict'

// The workloads of compute.js: an export and an input of each guest, the same in each run.

const { randomNumbers } = require('../../__test__/support/random.js')

const IMAGE_SIDE = 192
const WORDS = ('the plugin reads its input and writes a result to memory while other calls wait in a queue for one of the ' +
  'instances of an engine that compiles code').split(' ')

const SCRIPTS = {
  json: (text) => `(() => {
    const people = JSON.parse(${JSON.stringify(text)})
    const cities = {}
    for (const { address, balance, tags } of people) {
      const city = cities[address.city] ??= { people: 0, balance: 0, tags: [] }
      city.people++
      city.balance += balance
      city.tags = [...new Set([...city.tags, ...tags])].sort()
    }
    return JSON.stringify(people.map((person) => ({ ...person, name: person.name.toUpperCase() }))) + JSON.stringify(cities)
  })()`,
  loop: `(() => {
    let sum = 0
    for (let i = 1; i <= 50000; i++) sum = (sum * 31 + i * i) % 1000003
    return String(sum)
  })()`
}

/** The workloads of each guest. `makeInput` gets a plugin of the guest, because another export may make the input. */
function createWork () {
  const random = randomNumbers(1)
  const below = (limit) => Math.floor(random() * limit)
  const word = () => WORDS[below(WORDS.length)]
  const words = (count) => Array.from({ length: count }, word).join(' ')
  const address = () => `${word()}.${word()}${below(100)}@${word()}.${random() < 0.5 ? 'com' : 'org'}`
  const repeat = (count, create) => Array.from({ length: count }, (_, i) => create(i))

  const people = (count) => JSON.stringify(repeat(count, (id) => ({
    id,
    name: `${word()} ${word()}`,
    email: address(),
    balance: below(100_000) / 100,
    tags: repeat(below(6), word),
    address: { street: `${word()} ${below(200)}`, city: word() }
  })))
  const prose = repeat(600, () => `${words(10)} ${address()} ${words(5)}.`).join('\n')
  const markdown = repeat(300, (i) => [
    `## ${words(3)} ${i}`,
    `${words(20)} **${words(3)}** and [${words(2)}](https://example.org/${word()}), *${words(4)}* with \`${word()}\`.`,
    repeat(4, () => `- ${words(8)}`).join('\n'),
    `| ${word()} | ${word()} |\n|---|---|\n| ${words(3)} | ${words(4)} |`,
    `\`\`\`\n${words(12)}\n\`\`\``
  ].join('\n\n')).join('\n\n')
  const pixels = Uint8Array.from({ length: IMAGE_SIDE ** 2 * 4 }, (_, i) => {
    const [x, y] = [(i >> 2) % IMAGE_SIDE, (i >> 2) / IMAGE_SIDE]
    // Smooth with some noise, like a photograph.
    return i % 4 === 3 ? 255 : 128 + 100 * Math.sin(x / (20 + i % 4 * 9)) * Math.cos(y / 31) + below(8)
  })

  const work = (name, entry, input) => ({ name, entry, makeInput: () => input })
  return {
    go: [
      work('Go: SHA-256 of 1 MiB', 'sha256', Uint8Array.from({ length: 1 << 20 }, () => below(256))),
      work('Go: JSON', 'json', people(700)),
      work('Go: regular expression', 'regexp', prose),
      work('Go: sort of lines', 'sort', repeat(12_000, () => words(4)).join('\n')),
      work('Go: resize of an image', 'resize', pixels),
      work('Go: gzip', 'gzip', prose)
    ],
    assemblyscript: [
      work('AssemblyScript: Mandelbrot set', 'mandelbrot'),
      work('AssemblyScript: sieve', 'sieve'),
      work('AssemblyScript: matrices', 'matrix')
    ],
    rust: [
      work('Rust: Markdown to HTML', 'markdown', markdown),
      work('Rust: PNG encoder', 'png_encode', pixels),
      {
        name: 'Rust: PNG decoder',
        entry: 'png_decode',
        makeInput: async (plugin) => (await plugin.call('png_encode', pixels)).bytes()
      }
    ],
    quickjs: [
      work('QuickJS: JSON', 'run', SCRIPTS.json(people(300))),
      work('QuickJS: loop', 'run', SCRIPTS.loop)
    ]
  }
}

module.exports = { createWork }
