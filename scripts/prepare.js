'use strict'

// Builds the addon when npm installs this repository. npm runs `prepare` twice then: for the link in node_modules by which
// the packages find this directory, and for the directory itself. Only npm's run for a link has this variable.

const { spawnSync } = require('node:child_process')

if (process.env.npm_package_dev_optional === undefined) {
  process.exitCode = spawnSync('npm run build', { stdio: 'inherit', shell: true }).status ?? 1
}
