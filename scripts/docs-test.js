'use strict'

// Tests the built site (`npm run docs:build`) in a browser without a network: search, every page at the width of a phone,
// and dark mode. `node scripts/docs-test.js [directory]` saves screenshots there. It needs Chromium (`CHROMIUM`, or
// `chromium` in the path).

const assert = require('node:assert')
const { spawnSync } = require('node:child_process')
const { existsSync, readFileSync, readdirSync, statSync } = require('node:fs')
const { createServer } = require('node:http')
const { extname, join } = require('node:path')

const DOCS = join(__dirname, '../docs')
const SITE = join(DOCS, '.vitepress/dist')
const BASE = '/extism-host/'
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.json': 'application/json', '.woff2': 'font/woff2' }
const PHONE = { width: 390, height: 844 }

function serve () {
  const server = createServer(({ url }, response) => {
    const path = decodeURI(new URL(url, 'http://localhost').pathname).slice(BASE.length)
    const file = [join(SITE, path), join(SITE, `${path}.html`), join(SITE, path, 'index.html')]
      .find((file) => existsSync(file) && statSync(file).isFile())
    if (file === undefined) return response.writeHead(404).end()
    response.writeHead(200, { 'content-type': TYPES[extname(file)] ?? 'application/octet-stream' }).end(readFileSync(file))
  })
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)))
}

const pages = () => readdirSync(SITE, { recursive: true }).filter((file) => file.endsWith('.html') && file !== '404.html')

/** Opens a page that reports requests to other origins, and errors of its scripts. */
async function open (browser, options, root, problems) {
  const context = await browser.newContext(options)
  const page = await context.newPage()
  await page.route('**', (route) => {
    if (route.request().url().startsWith(root)) return route.continue()
    problems.push(`${page.url()} asks for ${route.request().url()}`)
    return route.abort()
  })
  page.on('pageerror', (error) => problems.push(`${page.url()}: ${error.message}`))
  return page
}

async function main (screenshots) {
  assert(existsSync(SITE), 'there is no site: npm run docs:build')
  const { chromium } = require(join(DOCS, 'node_modules/playwright-core'))
  const executablePath = process.env.CHROMIUM ?? spawnSync('which', ['chromium'], { encoding: 'utf8' }).stdout.trim()
  assert(executablePath !== '', 'there is no Chromium: apt-get install chromium, or set CHROMIUM to its path')
  const server = await serve()
  const root = `http://127.0.0.1:${server.address().port}${BASE}`
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] })
  const problems = []
  const picture = (page, name) => screenshots === undefined ? undefined : page.screenshot({ path: join(screenshots, `${name}.png`) })
  try {
    const desktop = await open(browser, { viewport: { width: 1280, height: 900 } }, root, problems)
    await desktop.goto(root)
    await picture(desktop, 'index')
    await desktop.click('.DocSearch-Button')
    await desktop.fill('.search-input', 'TIMEOUT')
    await desktop.waitForSelector('.result')
    const found = await desktop.$$eval('.result', (results) => results.map((result) => result.getAttribute('href')))
    await desktop.waitForTimeout(500)
    await picture(desktop, 'search')
    if (!found.some((href) => href.includes('troubleshoot'))) problems.push(`search for TIMEOUT finds ${found.join(', ')}`)

    const dark = await open(browser, { viewport: { width: 1280, height: 900 }, colorScheme: 'dark' }, root, problems)
    for (const name of ['reference/errors', 'explanation/performance']) {
      await dark.goto(`${root}${name}.html`)
      const [background] = (await dark.evaluate(() => globalThis.getComputedStyle(globalThis.document.body).backgroundColor)).match(/\d+/g)
      if (Number(background) > 60) problems.push(`${name} has a light background in dark mode`)
      await picture(dark, `dark-${name.split('/')[1]}`)
    }

    const phone = await open(browser, { viewport: PHONE, isMobile: true }, root, problems)
    for (const file of pages()) {
      await phone.goto(`${root}${file}`)
      const width = await phone.evaluate(() => globalThis.document.documentElement.scrollWidth)
      if (width > PHONE.width) problems.push(`${file} is ${width} pixels wide on a phone`)
      if (/^(tutorials\/getting-started|reference\/errors|how-to\/stores)/.test(file)) await picture(phone, `phone-${file.split('/')[1]}`)
    }
  } finally {
    await browser.close()
    server.close()
  }
  for (const problem of problems) console.error(problem)
  if (problems.length > 0) process.exitCode = 1
  else console.log(`${pages().length} pages: search, width and dark mode work`)
}

main(process.argv[2])
