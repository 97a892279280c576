'use strict'

// A headless Chromium for tests: the one that is installed, driven by playwright-core.

const { existsSync } = require('node:fs')
const { chromium } = require('playwright-core')

const PATH = process.env.CHROMIUM ?? '/usr/bin/chromium'

const hasChromium = () => existsSync(PATH)

async function launch () {
  if (!hasChromium()) throw new Error(`there is no Chromium at ${PATH}: apt-get install chromium, or set CHROMIUM to its path`)
  return chromium.launch({ executablePath: PATH, args: ['--no-sandbox'] })
}

/** Opens a page that reports requests to other origins than `root`, and errors of its scripts. */
async function openPage (browser, root, options) {
  const page = await browser.newPage(options)
  const problems = []
  await page.route('**', (route) => {
    const url = route.request().url()
    if (url.startsWith(root) || url.startsWith('data:')) return route.continue()
    problems.push(`asks for ${url}`)
    return route.abort()
  })
  page.on('pageerror', ({ message }) => problems.push(message))
  page.on('console', (message) => { if (message.type() === 'error') problems.push(message.text()) })
  return { page, problems }
}

module.exports = { hasChromium, launch, openPage }
