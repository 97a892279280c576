#!/usr/bin/env node
'use strict'

require('../lib/index.js').main(process.argv)
