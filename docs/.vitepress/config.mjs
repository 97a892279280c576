// The site of the documents: `npm run docs` shows it, `npm run docs:build` builds it. A dead link fails the build.

import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const DOCS = fileURLToPath(new URL('..', import.meta.url))
const ROOT = join(DOCS, '..')
const REPOSITORY = 'https://github.com/extism-host/extism-host'

const title = (file) => /^# (.*)$/m.exec(readFileSync(join(DOCS, file), 'utf8'))[1].replaceAll('`', '')

/** The pages that index.md lists under a heading, in its order. */
function section (heading) {
  const text = readFileSync(join(DOCS, 'index.md'), 'utf8').split(`## ${heading}\n`)[1].split('\n## ')[0]
  const pages = [...text.matchAll(/^\| \[([^\]]+)\]\(([^)]+)\)/gm)]
  return { text: heading, items: pages.map(([, text, file]) => ({ text, link: `/${file.replace(/\.md$/, '')}` })) }
}

/** The pages that TypeDoc makes of index.d.ts. */
function types () {
  const directory = join(DOCS, 'reference/types')
  const kinds = readdirSync(directory, { withFileTypes: true }).filter((entry) => entry.isDirectory())
  return {
    text: 'Types',
    link: '/reference/types/',
    collapsed: true,
    items: kinds.map(({ name: kind }) => ({
      text: kind,
      collapsed: true,
      items: readdirSync(join(directory, kind)).map((file) => file.replace(/\.md$/, '')).map((name) => ({ text: name, link: `/reference/types/${kind}/${name}` }))
    }))
  }
}

/** Makes links of GitHub of those that leave docs/, and fails if their file does not exist. */
function linksToRepository (markdown) {
  const render = markdown.renderer.rules.link_open ?? ((tokens, index, options, env, self) => self.renderToken(tokens, index, options))
  markdown.renderer.rules.link_open = (tokens, index, options, env, self) => {
    const href = tokens[index].attrGet('href')
    if (/^\.\.?\//.test(href)) {
      const [path, fragment] = join(dirname(env.path), decodeURI(href)).split('#')
      const inRepository = relative(ROOT, path)
      if (!inRepository.startsWith('docs/')) {
        if (!existsSync(path)) throw new Error(`${env.path}: there is no ${inRepository}`)
        tokens[index].attrSet('href', `${REPOSITORY}/blob/main/${inRepository}${fragment === undefined ? '' : `#${fragment}`}`)
      }
    }
    return render(tokens, index, options, env, self)
  }
}

const reference = section('Reference')
reference.items.splice(1, 0, types())

export default {
  title: 'extism-host',
  description: 'Run Extism plugins in Node.js on native threads; the event loop never blocks',
  base: '/extism-host/',
  // TypeDoc's pages have titles of their own kind.
  transformPageData: (page) => existsSync(join(DOCS, page.relativePath)) ? { title: title(page.relativePath) } : undefined,
  markdown: { config: linksToRepository },
  themeConfig: {
    nav: [
      { text: 'Get started', link: '/tutorials/getting-started' },
      { text: 'API', link: '/reference/api' },
      { text: 'Error codes', link: '/reference/errors' }
    ],
    sidebar: [section('Tutorials'), section('Guides'), reference, section('Explanation')],
    outline: [2, 3],
    // Pages come before the lists that TypeDoc makes.
    search: {
      provider: 'local',
      options: { detailedView: true, miniSearch: { searchOptions: { boostDocument: (id) => id.includes('/reference/types/') ? 0.2 : 1 } } }
    },
    socialLinks: [{ icon: 'github', link: REPOSITORY }]
  }
}
