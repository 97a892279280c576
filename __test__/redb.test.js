'use strict'

const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { describeStore } = require('./support/store-suite.js')

let directory

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'extism-host-redb-'))
})

afterAll(() => {
  rmSync(directory, { recursive: true, maxRetries: 10 })
})

let files = 0
const newPath = () => join(directory, `${files++}.redb`)

describeStore('redb:', async () => [`redb:${newPath()}`], { isShared: true, canReopen: true })
