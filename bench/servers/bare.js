'use strict'

// No plugin: the answer's bytes as a constant. What is left is the most that Fastify can do here.

const { expectedAnswer } = require('../support/article.js')
const { serve } = require('./service.js')

const answer = new TextEncoder().encode(expectedAnswer('Jane Doe')).buffer

serve(() => answer)
