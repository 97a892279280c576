'use strict'

// Checks deploy/grafana and deploy/prometheus against a real run: serves plugins, lets Prometheus scrape them, and asks
// Prometheus for each query of the dashboard. Needs Debian's packages prometheus, with promtool, and nats-server.

const { execFileSync, spawn } = require('node:child_process')
const { once } = require('node:events')
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require('node:fs')
const { createServer } = require('node:net')
const { tmpdir } = require('node:os')
const { join } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { jetstreamManager } = require('@nats-io/jetstream')
const { connect } = require('@nats-io/transport-node')
const { guest } = require('../__test__/support/guest.js')
const { startNats } = require('../__test__/support/nats.js')

const ROOT = join(__dirname, '..')
const ALERTS = join(ROOT, 'deploy/prometheus/alerts.yml')
const DASHBOARD = join(ROOT, 'deploy/grafana/dashboard.json')
const PLUGIN = join(ROOT, 'plugins/visits-rust/visits.wasm')
const START_MS = 60_000

/** The alerts that the run must raise, with some of their labels. */
const EXPECTED_ALERTS = {
  ExtismCallsFail: { plugin: 'denied' },
  ExtismDeadLetters: { trigger: 'orders.*', plugin: 'messages' },
  ExtismMessagesDropped: { trigger: 'slow.*', plugin: 'slow' },
  ExtismMessagesWait: { trigger: 'slow.*', plugin: 'slow' },
  ExtismConnectionFails: { plugin: 'connected', connector: 'broker', outcome: 'TIMEOUT' }
}

const children = []
const promtool = (args, options) => execFileSync('promtool', args, { encoding: 'utf8', stdio: ['pipe', 'pipe', 'inherit'], ...options })

async function freePort () {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  return port
}

async function until (what, isSo) {
  const deadline = Date.now() + START_MS
  for (;;) {
    const value = await isSo().catch(() => undefined)
    if (value) return value
    if (Date.now() > deadline) throw new Error(`${what} takes too long`)
    await sleep(200)
  }
}

function start (command, args) {
  const child = spawn(command, args, { cwd: ROOT, stdio: ['ignore', 'ignore', 'pipe'] })
  child.log = ''
  child.stderr.on('data', (chunk) => { child.log += chunk })
  children.push(child)
}

/**
 * Serves a plugin that may write, and the same one that may not, so that calls and store operations fail. Others get messages:
 * one fails for each, and one is too slow.
 */
async function serve (directory, broker) {
  for (const name of ['message', 'connected']) writeFileSync(join(directory, `${name}.wasm`), await guest(name))
  const port = await freePort()
  const config = join(directory, 'serve.yaml')
  writeFileSync(config, `
server: { port: ${port}, host: 127.0.0.1 }
plugins:
  visits: { wasm: ${JSON.stringify(PLUGIN)}, store: { access: write } }
  denied: { wasm: ${JSON.stringify(PLUGIN)} }
  messages: { wasm: message.wasm }
  slow: { wasm: message.wasm, timeoutMs: ${START_MS} }
  connected: { wasm: connected.wasm, connect: { broker: { request: [silent] } } }
connections:
  broker: { nats: '${broker}' }
triggers:
  - { jetStream: orders.*, stream: ORDERS, consumer: workers, maxDeliver: 1, deadLetterSubject: dead.orders, plugin: messages, function: trap }
  - { nats: slow.*, concurrency: 1, plugin: slow, function: endless }
routes:
  - { url: /visits, plugin: visits, function: visit }
  - { url: /denied, plugin: denied, function: visit }
  - { url: /connected, plugin: connected, function: request }
health: true
metrics: true
`)
  start(process.execPath, ['bin/extism-host.js', 'serve', '--config', config])
  const url = `http://127.0.0.1:${port}`
  await until('the start of the server', async () => (await fetch(`${url}/health/ready`)).ok)
  return { url, port }
}

async function startPrometheus (directory, target) {
  const port = await freePort()
  const config = join(directory, 'prometheus.yml')
  writeFileSync(config, JSON.stringify({
    global: { scrape_interval: '1s', evaluation_interval: '1s' },
    rule_files: [ALERTS],
    scrape_configs: [{ job_name: 'extism-host', static_configs: [{ targets: [`127.0.0.1:${target}`] }] }]
  }))
  promtool(['check', 'config', config])
  start('prometheus', [`--config.file=${config}`, `--storage.tsdb.path=${join(directory, 'data')}`, `--web.listen-address=127.0.0.1:${port}`])
  const url = `http://127.0.0.1:${port}`
  await until('the start of Prometheus', async () => (await fetch(`${url}/-/ready`)).ok)
  return url
}

/** The queries of the dashboard, with Grafana's variables replaced. */
function queries () {
  const { panels } = JSON.parse(readFileSync(DASHBOARD, 'utf8'))
  return panels.flatMap(({ title, targets = [] }) => targets.map(({ expr }) => ({
    title, expr: expr.replaceAll('$plugin', '.*').replaceAll('$__rate_interval', '30s')
  })))
}

/** Makes a bit of everything happen that the dashboard shows. */
async function cause (server, broker) {
  broker.publish('orders.new')
  for (let count = 0; count < 2_000; count++) broker.publish('slow.one')
  const bodies = { visits: 'Jane', denied: 'Jane', connected: JSON.stringify({ connection: 'broker', subject: 'silent', timeoutMs: 10 }) }
  await Promise.all(Object.entries(bodies).map(([path, body]) => fetch(`${server.url}/${path}`, { method: 'POST', body })))
}

async function main () {
  const directory = mkdtempSync(join(tmpdir(), 'extism-host-dashboards-'))
  const nats = await startNats(['-js', '-sd', directory])
  const broker = await connect({ servers: nats.url })
  try {
    promtool(['check', 'rules', ALERTS])
    const { streams } = await jetstreamManager(broker)
    for (const name of ['orders', 'dead']) await streams.add({ name: name.toUpperCase(), subjects: [`${name}.*`] })
    // It never answers.
    broker.subscribe('silent', { callback () {} })
    const server = await serve(directory, nats.url)
    const prometheus = await startPrometheus(directory, server.port)
    for (const { title, expr } of queries()) {
      await until(`the query of "${title}", ${expr},`, async () => {
        await cause(server, broker)
        return promtool(['query', 'instant', prometheus, expr]).trim()
      })
    }
    for (const [name, expected] of Object.entries(EXPECTED_ALERTS)) {
      await until(`the alert ${name} about ${JSON.stringify(expected)}`, async () => {
        await cause(server, broker)
        const { data } = await (await fetch(`${prometheus}/api/v1/alerts`)).json()
        return data.alerts.some(({ labels }) => labels.alertname === name && Object.entries(expected).every(([label, value]) => labels[label] === value))
      })
    }
    const rules = (await (await fetch(`${prometheus}/api/v1/rules`)).json()).data.groups.flatMap(({ rules }) => rules)
    const broken = rules.filter(({ health }) => health === 'err')
    if (broken.length > 0) throw new Error(`Prometheus cannot evaluate ${broken.map(({ name, lastError }) => `${name}: ${lastError}`).join(', ')}`)
    // The naming rules of promtool: it exits with 3 if it would name a metric differently.
    promtool(['check', 'metrics'], { input: await (await fetch(`${server.url}/metrics`)).text() })
    console.log(`${queries().length} queries have data, ${rules.length} alerts can be evaluated, ${Object.keys(EXPECTED_ALERTS).length} of them were raised, and the names of the metrics are sound`)
  } finally {
    await broker.close()
    await nats.stop()
    for (const child of children) {
      child.kill('SIGKILL')
      await once(child, 'close')
    }
    rmSync(directory, { recursive: true, maxRetries: 10 })
  }
}

main().catch((error) => {
  console.error(error.message)
  process.exitCode = 1
})
