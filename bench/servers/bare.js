'use strict'

// No plugin: it responds with a constant, which measures the upper limit of Fastify on this machine.

const { expectedAnswer } = require('../support/article.js')
const { serve } = require('./service.js')

const answer = new TextEncoder().encode(expectedAnswer('Jane Doe')).buffer

serve(() => answer)
