'use strict'

// HTTP requests of plugins, to servers of these tests on this machine.

const { once } = require('node:events')
const { readFileSync } = require('node:fs')
const { createServer } = require('node:http')
const { join } = require('node:path')
const { createServer: createTlsServer } = require('node:tls')
const { createServer: createTcpServer } = require('node:net')
const { Worker } = require('node:worker_threads')
const { createPlugin } = require('..')
const { assemble, guest } = require('./support/guest.js')
const { pluginsOfEachTest } = require('./support/plugins.js')
const { ROOT, runNode } = require('./support/processes.js')

let wasm

const open = pluginsOfEachTest()
const start = (options) => open(wasm, options)
const TLS = join(__dirname, 'support', 'tls')
const PEM = readFileSync(join(TLS, 'localhost.pem'))
const CERTIFICATE = { key: PEM, cert: PEM }
const LOCAL = { allowedHosts: ['127.0.0.1'] }
const refusal = (message) => ({ code: 'HOST_FUNCTION_ERROR', message })

/** The input of the guest's functions. */
const request = (url, rest, body = '') => `${JSON.stringify({ url, ...rest })}\n${body}`

beforeAll(async () => { wasm = await guest('http') })

const running = []
afterEach(async () => {
  for (const server of running.splice(0)) {
    server.closeAllConnections?.()
    await new Promise((resolve) => server.close(resolve))
  }
})

async function listen (server, address = '127.0.0.1') {
  await new Promise((resolve, reject) => server.on('error', reject).listen(0, address, resolve))
  running.push(server)
  return server.address().port
}

/** A server that answers with `answer(request, response, body)` and keeps what it was asked. */
async function serve (answer, address = '127.0.0.1') {
  const requests = []
  const server = createServer((request, response) => {
    const chunks = []
    request.on('data', (chunk) => chunks.push(chunk))
    request.on('end', () => {
      const { method, url, headers } = request
      requests.push({ method, url, headers, body: Buffer.concat(chunks).toString() })
      answer(request, response)
    })
  })
  const port = await listen(server, address)
  const host = address.includes(':') ? `[${address}]` : address
  return { server, requests, port, url: `http://${host}:${port}` }
}

const greet = (_, response) => response.end('hello')
const redirectTo = (location, status = 302) => (request, response) => request.url === '/'
  ? response.writeHead(status, { location }).end('moved')
  : response.end(`here, by ${request.method}`)
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

describe('allowedHosts', () => {
  test('without it, every request is rejected with a message that says so', async () => {
    const { url, requests } = await serve(greet)
    const plugin = await start()
    await expect(plugin.call('body', request(`${url}/a b?key=value`))).rejects.toMatchObject(refusal(
      `Call error: HTTP request to "${url}/a%20b" is not allowed (no allowedHosts match "127.0.0.1")`))
    expect(requests).toEqual([])
  })

  test('if no entry matches, a request is rejected, and the next call works', async () => {
    const { url, requests } = await serve(greet)
    const plugin = await start({ allowedHosts: ['example.com', '*.example.com', '127.0.0.?.example.com'] })
    await expect(plugin.call('body', request(url))).rejects.toMatchObject(refusal(
      `Call error: HTTP request to "${url}/" is not allowed (no allowedHosts match "127.0.0.1")`))
    expect((await plugin.call('last_status')).getUint16(0, true)).toBe(0)
    expect(requests).toEqual([])
  })

  test.each([['127.0.0.1'], ['127.0.*'], ['127.0.0.?'], ['127.0.0.[0-9]'], ['*'], ['**']])('allows what matches %s', async (host) => {
    const { url } = await serve(greet)
    const plugin = await start({ allowedHosts: ['example.com', host] })
    expect((await plugin.call('body', request(url))).text()).toBe('hello')
  })

  test('allows names, in any letter case', async () => {
    const { port } = await serve(greet)
    const plugin = await start({ allowedHosts: ['LocalHost'] })
    expect((await plugin.call('body', request(`http://LOCALhost:${port}`))).text()).toBe('hello')
  })

  test.each([['::1'], ['[::1]'], ['0:0::1']])('allows an IPv6 address that is written as %s', async (host) => {
    const { url } = await serve(greet, '::1')
    const plugin = await start({ allowedHosts: [host] })
    expect((await plugin.call('body', request(url))).text()).toBe('hello')
    await expect(plugin.call('body', request('http://[::2]/'))).rejects.toMatchObject(refusal(
      'Call error: HTTP request to "http://[::2]/" is not allowed (no allowedHosts match "[::2]")'))
  })

  test('is read from the manifest, under both names, unless the options have one', async () => {
    const { url } = await serve(greet)
    for (const hosts of [{ allowedHosts: ['127.0.0.1'] }, { allowed_hosts: ['127.0.0.1'] }]) {
      const manifest = { wasm: [{ data: wasm }], ...hosts }
      const plugin = await open(manifest)
      expect((await plugin.call('body', request(url))).text()).toBe('hello')
      const strict = await open(manifest, { allowedHosts: [] })
      await expect(strict.call('body', request(url))).rejects.toMatchObject({ code: 'HOST_FUNCTION_ERROR' })
    }
  })

  test.each([
    ['', /is empty: write a host name/],
    ['https://example.com', /has a scheme: write the host name alone/],
    ['example.com/path', /has a path: write the host name alone/],
    ['example.com:443', /without a port/],
    ['{a,b}.*.com', /which host names cannot have/],
    ['not a host', /is not a host name/]
  ])('refuses the entry "%s", which cannot match, and says what to write', async (host, message) => {
    await expect(createPlugin(wasm, { allowedHosts: ['example.com', host] }))
      .rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) })
  })

  test('must be an array of strings', async () => {
    for (const allowedHosts of ['example.com', [1], ['example.com', 1], {}]) {
      await expect(createPlugin(wasm, { allowedHosts })).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(/^allowedHosts must be an array of host names/)
      })
    }
  })
})

describe('a request', () => {
  test('arrives with its method, headers and body', async () => {
    const { url, requests } = await serve(greet)
    const plugin = await start(LOCAL)
    const headers = { 'X-Text': ' é ', 'content-type': 'text/plain', number: 1 }
    await plugin.call('body', request(`${url}/path?query`, { method: 'post', headers }, 'a body 🎉'))
    expect(requests).toMatchObject([{
      method: 'POST',
      url: '/path?query',
      body: 'a body 🎉',
      headers: { 'x-text': 'é', 'content-type': 'text/plain', number: '1', 'content-length': '11' }
    }])
  })

  test('is a GET by default, and may spell its headers "header"', async () => {
    const { url, requests } = await serve(greet)
    const plugin = await start(LOCAL)
    await plugin.call('body', request(url, { header: { a: 'b' } }))
    expect(requests).toMatchObject([{ method: 'GET', url: '/', headers: { a: 'b', 'user-agent': 'extism-host' } }])
  })

  test.each([['GET'], ['HEAD']])('has no body if it is a %s', async (method) => {
    const { url, requests } = await serve((_, response) => response.writeHead(200, { 'content-length': 10 ** 9 }).end())
    const plugin = await start(LOCAL)
    await plugin.call('body', request(url, { method }, 'ignored')).catch(() => {})
    expect(requests).toMatchObject([{ method, body: '' }])
  })

  test('cannot set what belongs to the connection', async () => {
    const { url, requests } = await serve(greet)
    const plugin = await start(LOCAL)
    const headers = {
      host: 'evil.example',
      'Content-Length': '1',
      connection: 'upgrade, x-mine',
      upgrade: 'websocket',
      'Transfer-Encoding': 'chunked',
      te: 'trailers',
      expect: '100-continue',
      'proxy-authorization': 'secret',
      'x-mine': 'stays'
    }
    await plugin.call('body', request(url, { method: 'POST', headers }, 'whole body'))
    expect(requests[0]).toMatchObject({ body: 'whole body', headers: { host: url.slice(7), 'x-mine': 'stays' } })
    for (const name of ['upgrade', 'transfer-encoding', 'te', 'expect', 'proxy-authorization']) {
      expect(requests[0].headers).not.toHaveProperty(name)
    }
    expect(requests[0].headers.connection).not.toBe('upgrade, x-mine')
  })

  test('has content-length 0 if it could have a body but has none', async () => {
    const { url, requests } = await serve(greet)
    const plugin = await start(LOCAL)
    await plugin.call('body', request(url, { method: 'PUT' }))
    expect(requests).toMatchObject([{ method: 'PUT', body: '', headers: { 'content-length': '0' } }])
    const moved = await serve(redirectTo('/there', 303))
    await plugin.call('body', request(moved.url, { method: 'POST' }))
    expect(moved.requests[1]).toMatchObject({ method: 'GET', body: '' })
    expect(moved.requests[1].headers).not.toHaveProperty('content-length')
  })

  test('is one of many at once, each with its own answer', async () => {
    const { url } = await serve(({ url }, response) => setTimeout(() => response.end(url), 10))
    const plugin = await start({ ...LOCAL, instances: 4 })
    const paths = Array.from({ length: 60 }, (_, index) => `/${index}`)
    const answers = await Promise.all(paths.map((path) => plugin.call('body', request(url + path))))
    expect(answers.map((answer) => answer.text())).toEqual(paths)
  })

  test('uses the connection of the one before, and close() closes it', async () => {
    const { server, url } = await serve(greet)
    const sockets = []
    server.on('connection', (socket) => sockets.push(socket))
    const plugin = await start({ ...LOCAL, instances: 2 })
    for (let call = 0; call < 5; call++) await plugin.call('body', request(url))
    expect(sockets).toHaveLength(1)
    expect(sockets[0].closed).toBe(false)
    const closed = once(sockets[0], 'close')
    await plugin.close()
    await closed
  })

  test.each([
    ['', 'http_request: the request is not a JSON object {url, method?, headers?}: '],
    ['{"url":', 'http_request: the request is not a JSON object {url, method?, headers?}: '],
    ['[]', 'http_request: the request is not a JSON object {url, method?, headers?}: '],
    ['{}', 'http_request: the "url" of the request must be a string'],
    ['{"url":1}', 'http_request: the "url" of the request must be a string'],
    [`{"url":"http://127.0.0.1/${'x'.repeat(65_536)}"}`, 'Call error: HTTP request is not allowed (the URL has more than 65534 characters)'],
    [`{"url":"${'x'.repeat(1 << 20)}"}`, 'http_request: the request has 1048586 bytes without its body, more than the 1048576 allowed'],
    ['{"url":"/path"}', 'http_request: the URL "/path" is not valid: '],
    ['{"url":"http://127.0.0.1:99999"}', 'http_request: the URL "http://127.0.0.1:99999" is not valid: '],
    ['{"url":"http://127.0.0.1","method":"GET /"}', 'http_request: the method "GET /" is not valid'],
    ['{"url":"http://127.0.0.1","method":"connect"}', 'http_request: the method CONNECT is not allowed'],
    ['{"url":"http://127.0.0.1","method":1}', 'http_request: the "method" of the request must be a string'],
    ['{"url":"http://127.0.0.1","headers":[]}', 'http_request: the "headers" of the request must be an object'],
    ['{"url":"http://127.0.0.1","headers":{"a":[]}}', 'http_request: the value of the header "a" must be a string'],
    ['{"url":"http://127.0.0.1","headers":{"a\\nb":""}}', 'http_request: the header name "a\\nb" is not valid'],
    ['{"url":"http://127.0.0.1","headers":{"a":"b\\r\\nc: d"}}', 'http_request: the value of the header "a" is not valid: '],
    ['{"url":"http://127.0.0.1","headers":{"a":"🎉"}}', 'http_request: the value of the header "a" is not valid: ']
  ])('that is not valid is refused: %.80s', async (input, message) => {
    const plugin = await start(LOCAL)
    await expect(plugin.call('body', input))
      .rejects.toMatchObject(refusal(expect.stringContaining(message)))
  })

  test('must be HTTP, without user and password, even if all hosts are allowed', async () => {
    const plugin = await start({ allowedHosts: ['*'] })
    for (const [url, message] of [
      ['file:///etc/passwd', '"file:///etc/passwd" is not allowed (the scheme must be http or https, not file)'],
      ['ftp://host/file', '"ftp://host/file" is not allowed (the scheme must be http or https, not ftp)'],
      ['data:,text', '"data:,text" is not allowed (the scheme must be http or https, not data)'],
      ['http://user:secret@host/?key', '"http://host/" is not allowed (the URL has a user name or a password; send an Authorization header instead)']
    ]) {
      await expect(plugin.call('body', request(url)))
        .rejects.toMatchObject(refusal(`Call error: HTTP request to ${message}`))
    }
  })

  test('that fails says why, without query and addresses', async () => {
    const answering = (text) => createTcpServer((socket) => socket.once('data', () => socket.end(text)).on('error', () => {}))
    const probe = await serve(greet)
    await new Promise((resolve) => running.pop().close(resolve))
    const breaking = `http://127.0.0.1:${await listen(answering('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort'))}`
    const garbage = `http://127.0.0.1:${await listen(answering('no HTTP at all\r\n\r\n'))}`
    const plugin = await start({ allowedHosts: ['127.0.0.1', '*.invalid'] })
    for (const [url, why] of [
      [probe.url, 'the connection was refused'],
      [breaking, 'the server closed the connection'],
      [garbage, 'the response is incomplete or not valid HTTP'],
      // Too long for DNS: it is not even asked.
      [`http://${'a'.repeat(64)}.invalid`, 'the host was not found']
    ]) {
      await expect(plugin.call('body', request(`${url}/path?secret#fragment`)))
        .rejects.toMatchObject(refusal(`HTTP request to "${url}/path" failed: ${why}`))
    }
  })

  test('over TLS is made only if the certificate is trusted', async () => {
    const port = await listen(createTlsServer(CERTIFICATE, (socket) => socket.destroy()))
    const plugin = await start({ allowedHosts: ['localhost'] })
    await expect(plugin.call('body', request(`https://localhost:${port}/`))).rejects.toMatchObject(refusal(
      `HTTP request to "https://localhost:${port}/" failed: the server's certificate is not valid`))
    const plain = await serve(greet)
    await expect(plugin.call('body', request(`https://localhost:${plain.port}/`))).rejects.toMatchObject(refusal(
      `HTTP request to "https://localhost:${plain.port}/" failed: the TLS handshake failed`))
  })

  test('over TLS trusts what NODE_EXTRA_CA_CERTS names, for its own name only', async () => {
    const { output, errors } = await runNode(['-e', `
      const { createServer } = require('node:https')
      const { createPlugin } = require('.')
      const pem = require('node:fs').readFileSync('__test__/support/tls/localhost.pem')
      const server = createServer({ key: pem, cert: pem }, (request, response) => response.end('encrypted'))
      server.listen(0, '127.0.0.1', async () => {
        const plugin = await createPlugin(Buffer.from('${wasm.toString('base64')}', 'base64'), { allowedHosts: ['*'] })
        for (const host of ['localhost', '127.0.0.1']) {
          await plugin.call('body', JSON.stringify({ url: \`https://\${host}:\${server.address().port}\` })).then(
            (output) => console.log(output.text()), (error) => console.log(error.message.replace(/.*: /, '')))
        }
        await plugin.close()
        server.close()
      })`], { env: { NODE_EXTRA_CA_CERTS: join(TLS, 'authority.pem') } })
    expect({ output, errors }).toEqual({ output: 'encrypted\nthe server\'s certificate is not valid\n', errors: '' })
  })

  test('ignores the environment\'s proxies', async () => {
    const { url, requests } = await serve(greet)
    const proxy = await serve((_, response) => response.end('from the proxy'))
    const { output, errors } = await runNode(['-e', `
      const { createPlugin } = require('.')
      createPlugin(Buffer.from('${wasm.toString('base64')}', 'base64'), { allowedHosts: ['*'] }).then(async (plugin) => {
        console.log((await plugin.call('body', ${JSON.stringify(request(url))})).text())
        await plugin.close()
      })`], {
      env: Object.fromEntries(['HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'].map((name) => [name, proxy.url]))
    })
    expect({ output, errors }).toEqual({ output: 'hello\n', errors: '' })
    expect(requests).toHaveLength(1)
    expect(proxy.requests).toEqual([])
  })
})

describe('a response', () => {
  const answer = (_, response) => response.writeHead(418, [
    ['X-Twice', 'one'], ['X-Twice', 'two'], ['X-Latin', 'caf\xe9']
  ].flat()).end('a teapot')

  test('gives the plugin its body and status', async () => {
    const { url } = await serve(answer)
    const plugin = await start(LOCAL)
    expect((await plugin.call('body', request(url))).text()).toBe('a teapot')
    expect((await plugin.call('status', request(url))).getUint16(0, true)).toBe(418)
  })

  test('gives the plugin its headers only with allowHttpResponseHeaders', async () => {
    const { url } = await serve(answer)
    const silent = await start(LOCAL)
    expect((await silent.call('headers', request(url))).byteLength).toBe(0)
    const plugin = await start({ ...LOCAL, allowHttpResponseHeaders: true })
    expect((await plugin.call('headers', request(url))).json())
      .toMatchObject({ 'x-twice': 'one, two', 'x-latin': 'café' })
    await expect(createPlugin(wasm, { allowHttpResponseHeaders: 1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('is forgotten when the call has ended, and is nobody else\'s', async () => {
    const { url } = await serve(answer)
    const options = { ...LOCAL, allowHttpResponseHeaders: true }
    const [one, other] = [await start(options), await start(options)]
    expect((await one.call('status', request(url))).getUint16(0, true)).toBe(418)
    for (const plugin of [one, other]) {
      expect((await plugin.call('last_status')).getUint16(0, true)).toBe(0)
      expect((await plugin.call('last_headers')).text()).toBe('{}')
    }
  })

  test('of no bytes is an empty block', async () => {
    const { url } = await serve((_, response) => response.writeHead(204).end())
    const plugin = await start(LOCAL)
    expect((await plugin.call('body', request(url))).byteLength).toBe(0)
    expect((await plugin.call('status', request(url))).getUint16(0, true)).toBe(204)
  })

  test('may be as long as memory.maxHttpResponseBytes, and not longer, announced or not', async () => {
    const { url } = await serve((request, response) => {
      const length = Number(request.url.slice(2))
      if (request.url[1] === 'a') response.setHeader('content-length', length)
      else response.write('')
      response.end('x'.repeat(length))
    })
    for (const memory of [{ maxHttpResponseBytes: 1_000 }, { max_http_response_bytes: 1_000 }]) {
      const plugin = await open({ wasm: [{ data: wasm }], memory }, LOCAL)
      for (const kind of ['a', 'n']) {
        expect((await plugin.call('body', request(`${url}/${kind}1000`))).byteLength).toBe(1_000)
        await expect(plugin.call('body', request(`${url}/${kind}1001`)))
          .rejects.toMatchObject(refusal('Response body exceeded 1000 bytes'))
      }
      expect((await plugin.call('body', request(`${url}/a1001`, { method: 'HEAD' }))).byteLength).toBe(0)
    }
    await expect(createPlugin(wasm, { memory: { maxHttpResponseBytes: 0 } })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('without end is read no further than the limit', async () => {
    let written = 0
    const { url } = await serve((_, response) => {
      const chunk = Buffer.alloc(65_536)
      const write = () => {
        while (!response.destroyed && response.write(chunk)) written += chunk.length
      }
      response.on('drain', write)
      write()
    })
    const plugin = await start({ ...LOCAL, memory: { maxHttpResponseBytes: 1 << 20 } })
    await expect(plugin.call('body', request(url)))
      .rejects.toMatchObject(refusal('Response body exceeded 1048576 bytes'))
    // What the buffers of the two sockets take in comes on top.
    expect(written).toBeLessThan(32 << 20)
  })

  test('may have 50 MiB by default', async () => {
    const { url } = await serve((_, response) => response.writeHead(200, { 'content-length': (50 << 20) + 1 }).end())
    const plugin = await start(LOCAL)
    await expect(plugin.call('body', request(url)))
      .rejects.toMatchObject(refusal('Response body exceeded 52428800 bytes'))
  })

  test('that does not fit into the plugin\'s memory ends the call as out of memory', async () => {
    const { url } = await serve((_, response) => response.end(Buffer.alloc(8 << 20)))
    const plugin = await start({ ...LOCAL, memory: { maxPages: 32 } })
    await expect(plugin.call('body', request(url))).rejects.toMatchObject({ code: 'OUT_OF_MEMORY' })
  })
})

describe('a redirect', () => {
  test('is followed to a host that is allowed', async () => {
    const { url, requests } = await serve(redirectTo('/there?key'))
    const plugin = await start(LOCAL)
    expect((await plugin.call('body', request(url))).text()).toBe('here, by GET')
    expect((await plugin.call('status', request(url))).getUint16(0, true)).toBe(200)
    expect(requests.map(({ url }) => url)).toEqual(['/', '/there?key', '/', '/there?key'])
  })

  test('to another host is refused, which gets no request, and the message names it', async () => {
    const hidden = await serve(greet, '::1')
    const { url } = await serve(redirectTo(`${hidden.url}/admin`))
    const plugin = await start(LOCAL)
    await expect(plugin.call('body', request(url))).rejects.toMatchObject(refusal(
      `Call error: HTTP request to "${hidden.url}/admin" is not allowed (no allowedHosts match "[::1]")`))
    expect(hidden.requests).toEqual([])
  })

  test.each([
    ['file:///etc/passwd', 'Call error: HTTP request to "file:///etc/passwd" is not allowed (the scheme must be http or https, not file)'],
    ['http://user:secret@127.0.0.1/', 'Call error: HTTP request to "http://127.0.0.1/" is not allowed (the URL has a user name or a password; send an Authorization header instead)']
  ])('to %s is refused', async (location, message) => {
    const { url } = await serve(redirectTo(location))
    const plugin = await start({ allowedHosts: ['*'] })
    await expect(plugin.call('body', request(url))).rejects.toMatchObject(refusal(message))
  })

  test('to an invalid URL is rejected', async () => {
    const { url } = await serve(redirectTo('http://:99999/'))
    const plugin = await start(LOCAL)
    await expect(plugin.call('body', request(url)))
      .rejects.toMatchObject(refusal(`HTTP request to "${url}/" failed: it redirects to an invalid URL`))
  })

  test('is followed ten times', async () => {
    const { url, requests } = await serve((request, response) => {
      const left = Number(request.url.slice(1))
      if (left === 0) response.end('arrived')
      else response.writeHead(307, { location: `/${left - 1}` }).end()
    })
    const plugin = await start(LOCAL)
    expect((await plugin.call('body', request(`${url}/10`))).text()).toBe('arrived')
    requests.length = 0
    await expect(plugin.call('body', request(`${url}/11`)))
      .rejects.toMatchObject(refusal(`HTTP request to "${url}/11" failed: there were more than 10 redirects`))
    expect(requests).toHaveLength(11)
  })

  test.each([
    [301, 'POST', 'GET'], [302, 'POST', 'GET'], [303, 'POST', 'GET'], [303, 'PUT', 'GET'], [303, 'HEAD', 'HEAD'],
    [302, 'PUT', 'PUT'], [307, 'POST', 'POST'], [308, 'POST', 'POST']
  ])('with %i makes a %s a %s', async (status, method, becomes) => {
    const { url, requests } = await serve(redirectTo('/there', status))
    const plugin = await start(LOCAL)
    await plugin.call('body', request(url, { method, headers: { 'content-type': 'text/plain', 'x-mine': 'stays' } }, 'a body'))
    expect(requests[1]).toMatchObject({ method: becomes, url: '/there', headers: { 'x-mine': 'stays' } })
    const hasBody = !['GET', 'HEAD'].includes(becomes)
    expect(requests[1].body).toBe(hasBody ? 'a body' : '')
    if (method !== becomes) expect(requests[1].headers).not.toHaveProperty('content-type')
  })

  test('to another origin does not carry the first one\'s credentials', async () => {
    const other = await serve(greet)
    const { url, requests } = await serve((request, response) => {
      response.writeHead(302, { location: request.url === '/' ? '/same' : other.url }).end()
    })
    const plugin = await start(LOCAL)
    const headers = { Authorization: 'secret', Cookie: 'secret', 'x-mine': 'stays' }
    await plugin.call('body', request(url, { headers }))
    expect(requests[1].headers).toMatchObject({ authorization: 'secret', cookie: 'secret' })
    expect(other.requests[0].headers).toMatchObject({ 'x-mine': 'stays' })
    expect(other.requests[0].headers).not.toHaveProperty('authorization')
    expect(other.requests[0].headers).not.toHaveProperty('cookie')
  })

  test('without a location is a normal response', async () => {
    const { url } = await serve((_, response) => response.writeHead(302).end('moved'))
    const plugin = await start(LOCAL)
    expect((await plugin.call('body', request(url))).text()).toBe('moved')
  })
})

describe('a server that does not answer', () => {
  /** It accepts requests, and says when their connections are closed. */
  async function silentServer (begin = () => {}) {
    const { server, url } = await serve((request, response) => {
      begin(response)
      server.emit('asked')
    })
    const closed = new Promise((resolve) => server.on('connection', (socket) => socket.on('close', resolve)))
    const asked = new Promise((resolve) => server.once('asked', resolve))
    return { url, asked, closed }
  }

  const beginnings = [
    ['at all', () => {}],
    ['to its end', (response) => response.write('the beginning')]
  ]

  test.each(beginnings)('%s keeps a call no longer than timeoutMs, and no thread', async (_, begin) => {
    const { url, closed } = await silentServer(begin)
    const plugin = await start({ ...LOCAL, timeoutMs: 300 })
    const began = performance.now()
    await expect(plugin.call('body', request(url))).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect(performance.now() - began).toBeGreaterThan(250)
    expect(performance.now() - began).toBeLessThan(5_000)
    await closed
    // A thread that does not return is given up after 200 ms.
    await sleep(400)
    expect(plugin.stats()).toMatchObject({ abandonedThreads: 0, instances: 1, replaced: { interrupted: 1, hostFunctionError: 0 } })
    expect((await plugin.call('last_status')).getUint16(0, true)).toBe(0)
  })

  test.each(beginnings)('%s keeps no call that is aborted, and no thread', async (_, begin) => {
    const { url, asked, closed } = await silentServer(begin)
    const plugin = await start(LOCAL)
    const controller = new AbortController()
    const call = plugin.call('body', request(url), null, { signal: controller.signal })
    await asked
    controller.abort(new Error('changed my mind'))
    await expect(call).rejects.toThrow('changed my mind')
    await closed
    await sleep(400)
    expect(plugin.stats()).toMatchObject({ abandonedThreads: 0, replaced: { interrupted: 1 } })
    expect((await plugin.call('last_status')).getUint16(0, true)).toBe(0)
  })

  test('and the event loop turns meanwhile', async () => {
    const { url } = await silentServer()
    const plugin = await start({ ...LOCAL, timeoutMs: 500 })
    let turns = 0
    const timer = setInterval(() => turns++, 10)
    await expect(plugin.call('body', request(url))).rejects.toMatchObject({ code: 'TIMEOUT' })
    clearInterval(timer)
    expect(turns).toBeGreaterThan(10)
  })

  test('keeps one instance, and not the other', async () => {
    const silent = await silentServer()
    const { url } = await serve(greet)
    const plugin = await start({ ...LOCAL, instances: 2 })
    const controller = new AbortController()
    const call = plugin.call('body', request(silent.url), null, { signal: controller.signal })
    await silent.asked
    expect((await plugin.call('body', request(url))).text()).toBe('hello')
    controller.abort()
    await expect(call).rejects.toBe(controller.signal.reason)
  })

  test('keeps no initialization longer than timeoutMs', async () => {
    const { url, closed } = await silentServer()
    const json = JSON.stringify({ url })
    const store = [...Buffer.from(json)].map((byte, index) =>
      `(call $store (i64.add (local.get $block) (i64.const ${index})) (i32.const ${byte}))`).join('\n')
    const asking = await assemble(`(module
      (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
      (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
      (import "extism:host/env" "http_request" (func $http (param i64 i64) (result i64)))
      (func (export "_initialize") (local $block i64)
        (local.set $block (call $alloc (i64.const ${json.length})))
        ${store}
        (drop (call $http (local.get $block) (i64.const 0)))))`)
    await expect(createPlugin(asking, { ...LOCAL, timeoutMs: 300 })).rejects.toMatchObject({ code: 'TIMEOUT' })
    await closed
  })

  test('keeps neither a worker thread that is terminated nor the process', async () => {
    const { url, asked, closed } = await silentServer()
    const worker = new Worker(`
      const { workerData } = require('node:worker_threads')
      const { createPlugin } = require(workerData.root)
      createPlugin(workerData.wasm, { allowedHosts: ['*'] }).then((plugin) => plugin.call('body', workerData.input))
    `, { eval: true, workerData: { root: ROOT, wasm, input: request(url) } })
    await asked
    await worker.terminate()
    await closed
    const { url: other } = await serve(greet)
    expect((await (await start(LOCAL)).call('body', request(other))).text()).toBe('hello')
  })
})
