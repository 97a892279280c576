'use strict'

// Metrics of connections to brokers and databases.

const { Counter } = require('prom-client')

/** Exports what guests have done on connections of `extism-host/connect`. */
function showConnectorCalls (registers, plugins) {
  return new Counter({
    name: 'extism_connector_calls_total',
    help: 'Operations of guests on connections to brokers and databases, by outcome: OK, or the code that the guest was told',
    labelNames: ['plugin', 'connector', 'operation', 'outcome'],
    registers,
    collect () {
      this.reset()
      for (const plugin of plugins.names) {
        for (const [connector, operations] of Object.entries(plugins.plugin(plugin).statsOfAllVersions().connectors)) {
          for (const [operation, outcomes] of Object.entries(operations)) {
            for (const [outcome, count] of Object.entries(outcomes)) this.inc({ plugin, connector, operation, outcome }, count)
          }
        }
      }
    }
  })
}

module.exports = { showConnectorCalls }
