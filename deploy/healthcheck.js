'use strict'

// For HEALTHCHECK in an image without a shell and without curl.

fetch(`http://127.0.0.1:${process.env.PORT ?? 7070}/health/ready`).then(
  ({ ok }) => process.exit(ok ? 0 : 1),
  () => process.exit(1)
)
