'use strict'

// The check of prose, on the examples of CONTRIBUTING.md, which say what it is for.

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { problems } = require('../scripts/prose.js')
const { ROOT, runNode } = require('./support/processes.js')

const examples = [...readFileSync(join(ROOT, 'CONTRIBUTING.md'), 'utf8').matchAll(/^\| (.*?\.) \| (.*?\.) \|$/gm)]

test('there are examples', () => expect(examples.length).toBeGreaterThan(10))

test.each(examples.map(([, dont, instead]) => [dont, instead]))('not "%s" but "%s"', (dont, instead) => {
  expect(problems(dont, 'md')).not.toEqual([])
  expect(problems(instead, 'md')).toEqual([])
})

test('comments are read, and code is not', () => {
  const source = `
    /**
     * Sets the key. Where it is
     * missing, nothing happens.
     */
    const where = 'What is code is no prose.' // A key that is no text.`
  expect(problems(source, 'js').map(({ line, sentence }) => [line, sentence])).toEqual([
    [3, 'Where it is missing, nothing happens.'],
    [6, 'A key that is no text.']
  ])
})

test('code, links and quoted sentences of a document are left alone', () => {
  const text = [
    '# What it costs', '', 'Call `what is no name` or [a page](where/there-is/no.md).', '',
    '```js', '// This is no prose.', '```', '', '    $ where there is no prose', '',
    '<!-- prose: off -->', 'This is no prose.', '<!-- prose: on -->'
  ].join('\n')
  expect(problems(text, 'md')).toEqual([])
})

test('the documents keep to the rules', async () => {
  const { code, errors } = await runNode(['scripts/prose.js'])
  expect({ code, errors }).toEqual({ code: 0, errors: '' })
})
