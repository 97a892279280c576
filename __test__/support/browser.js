'use strict'

// Headless Chromium for tests of pages.

const { execFileSync } = require('node:child_process')
const { chromium } = require('playwright-core')

function executable () {
  if (process.env.CHROMIUM !== undefined) return process.env.CHROMIUM
  try {
    return execFileSync('which', ['chromium'], { encoding: 'utf8' }).trim()
  } catch {
    throw new Error('there is no Chromium: apt-get install chromium, or set CHROMIUM to its path')
  }
}

/** Starts it. The sandbox of Chromium does not work for root, as whom CI runs; it only opens pages of the tests. */
const launchBrowser = () => chromium.launch({ executablePath: executable(), args: ['--no-sandbox'] })

module.exports = { launchBrowser }
