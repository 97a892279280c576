'use strict'

const { spawn } = require('node:child_process')
const { once } = require('node:events')
const {
  copyFileSync, existsSync, linkSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync
} = require('node:fs')
const { tmpdir } = require('node:os')
const { join, relative } = require('node:path')
const { setTimeout: sleep } = require('node:timers/promises')
const { pathToFileURL } = require('node:url')
const { Worker } = require('node:worker_threads')
const { openStore } = require('..')
const { ROOT, runNode } = require('./support/processes.js')
const { valueOf } = require('./support/redb-writer.js')
const { describeStore } = require('./support/store-suite.js')
const { until } = require('./support/until.js')

const ROUNDS = 100

const isUnix = process.platform !== 'win32'

let directory
let names = 0
const newPath = () => join(directory, `${names++}.redb`)

const opened = []
async function open (path, options) {
  const store = await openStore(`redb:${path}`, options)
  opened.push(store)
  return store
}

beforeAll(() => { directory = mkdtempSync(join(tmpdir(), 'extism-host-redb-')) })
afterEach(() => Promise.all(opened.splice(0).map((store) => store.close())))
afterAll(() => { rmSync(directory, { recursive: true, maxRetries: 10 }) })

const refusedWith = (code, message) => ({ code, message: expect.stringMatching(message) })

/** Runs a program with `openStore` and `url`, a store's. */
const run = (path, program) => runNode(['-e', `
  const { openStore } = require('.')
  const url = ${JSON.stringify(`redb:${path}`)}
  ${program}`])

describeStore('redb:', async () => [`redb:${newPath()}`], { isShared: true, canReopen: true })

describe('a file', () => {
  test('is made for its owner only, and an empty one is a new store', async () => {
    const path = newPath()
    await open(path)
    if (isUnix) expect(statSync(path).mode & 0o777).toBe(0o600)
    const empty = newPath()
    writeFileSync(empty, '')
    const store = await open(empty)
    await store.set('key', 'value')
    await store.close()
    expect(String(await (await open(empty)).get('key'))).toBe('value')
  })

  test('is named by a path, absolute or not, in which only a % is special', async () => {
    const path = join(directory, 'with space & ä%?#+.redb')
    const store = await openStore(`redb:${pathToFileURL(path).pathname}`)
    opened.push(store)
    expect(existsSync(path)).toBe(true)
    await store.set('key', 'value')
    for (const url of [`redb:${relative(process.cwd(), path).replace('%', '%25').replace('?', '%3F').replace('#', '%23')}`, new URL(`redb:${pathToFileURL(path).pathname}`)]) {
      const same = await openStore(url)
      opened.push(same)
      expect(String(await same.get('key'))).toBe('value')
    }
    for (const url of ['redb:', 'redb://host/data.redb', 'redb:///data.redb', 'redb:data.redb?cache=1', 'redb:data.redb#x', 'redb:100%', 'redb:%00']) {
      await expect(openStore(url)).rejects.toMatchObject({ name: 'TypeError', ...refusedWith('INVALID_ARGUMENT', /redb:/) })
    }
  })

  test('takes cacheBytes, the same for all who open it, and no maxBytes', async () => {
    const path = newPath()
    const store = await open(path, { cacheBytes: 1 })
    await store.setMany(Array.from({ length: 1_000 }, (_, number) => [String(number), 'x'.repeat(1_000)]))
    for (let number = 0; number < 1_000; number += 99) expect((await store.get(String(number))).length).toBe(1_000)
    await open(path)
    await open(path, { cacheBytes: 1 })
    await expect(open(path, { cacheBytes: 2 })).rejects.toMatchObject(refusedWith('INVALID_ARGUMENT', /cacheBytes 1;/))
    for (const options of [{ maxBytes: 4096 }, { cacheBytes: 0 }, { cacheBytes: 1.5 }, { cacheBytes: '1' }, { cache: 1 }]) {
      await expect(open(newPath(), options)).rejects.toMatchObject({ name: 'TypeError', code: 'INVALID_ARGUMENT' })
    }
    await expect(openStore('memory:', { cacheBytes: 1 })).rejects.toMatchObject(refusedWith('INVALID_ARGUMENT', /cacheBytes/))
  })

  test('is one store in the process, by whatever path, until the last closes it', async () => {
    const path = newPath()
    const link = newPath()
    const store = await open(path)
    symlinkSync(path, link)
    const [other, same] = [await open(link), await open(relative(process.cwd(), path))]
    const changes = other.watch()
    await other.has('x')
    await same.set('key', 'value')
    expect((await changes.next()).value).toEqual({ type: 'set', key: 'key', value: Buffer.from('value') })
    await store.close()
    await other.close()
    const elsewhere = () => run(path, 'openStore(url).then((store) => store.get("key")).then(String).catch((error) => error.code).then(console.log)')
    expect((await elsewhere()).output).toBe('STORE_UNAVAILABLE\n')
    expect(String(await same.get('key'))).toBe('value')
    await same.close()
    expect((await elsewhere()).output).toBe('value\n')
    expect(String(await (await open(path)).get('key'))).toBe('value')
  })

  test('can be closed and opened again at once, by many', async () => {
    const path = newPath()
    const counts = await Promise.all(Array.from({ length: 20 }, async () => {
      let sum
      for (let round = 0; round < 5; round++) {
        const store = await openStore(`redb:${path}`)
        sum = store.increment('count')
        await Promise.all([sum, store.close()])
      }
      return sum
    }))
    expect(Math.max(...counts)).toBe(100)
  })

  test('that another process has is refused, until that process is gone', async () => {
    const path = newPath()
    const child = spawn(process.execPath, ['-e', `
      require('.').openStore(${JSON.stringify(`redb:${path}`)}).then(async (store) => {
        await store.set('key', 'value')
        console.log('open')
        setInterval(() => {}, 1_000)
      })`], { cwd: ROOT })
    const ended = once(child, 'close')
    try {
      await once(child.stdout, 'data')
      await expect(open(path)).rejects.toMatchObject(refusedWith('STORE_UNAVAILABLE', /another process/))
    } finally {
      child.kill('SIGKILL')
      await ended
    }
    expect(String(await (await open(path)).get('key'))).toBe('value')
  })

  test('that is not a store is rejected and left unchanged', async () => {
    await expect(open(directory)).rejects.toMatchObject(refusedWith('INVALID_ARGUMENT', /is a directory/))
    await expect(open(join(directory, 'none', 'data.redb'))).rejects.toMatchObject(refusedWith('FILE_NOT_FOUND', /directory/))
    const text = newPath()
    for (const content of ['a letter', 'x'.repeat(100_000), '\0'.repeat(9), '\0'.repeat(50_000) + 'x', `redb\x1A${'x'.repeat(10_000)}`]) {
      writeFileSync(text, content)
      await expect(open(text)).rejects.toMatchObject(refusedWith('STORE_DAMAGED', /not a store/))
      expect(readFileSync(text, 'utf8')).toBe(content)
    }
    await expect(open(join(text, 'data.redb'))).rejects.toMatchObject(refusedWith('FILE_NOT_FOUND', /not a directory/))
    if (isUnix) {
      await expect(open('/dev/null')).rejects.toMatchObject(refusedWith('INVALID_ARGUMENT', /not a regular file/))
    }
  })

  test('that was left half created by a process is a new store', async () => {
    const path = newPath()
    await open(path).then((store) => store.close())
    const { size } = statSync(path)
    writeFileSync(path, Buffer.alloc(size))
    const store = await open(path)
    expect(await store.increment('count')).toBe(1)
  })

  if (isUnix) {
    test('that may not be read and written is refused', async () => {
      const closed = join(directory, 'closed')
      mkdirSync(closed, { mode: 0o500 })
      const path = newPath()
      await open(path).then((store) => store.close())
      for (const [place, mode] of [[join(closed, 'data.redb')], [path, 0o400]]) {
      // Who is root may do everything, and so becomes somebody else.
        const { output, errors } = await run(place, `
        const { chmodSync, chownSync } = require('node:fs')
        const nobody = 65534
        if (process.getuid() === 0) {
          chmodSync(${JSON.stringify(directory)}, 0o755)
          for (const path of ${JSON.stringify([closed, path])}) chownSync(path, nobody, nobody)
        }
        if (${mode} !== undefined) chmodSync(${JSON.stringify(place)}, ${mode})
        if (process.getuid() === 0) process.seteuid(nobody)
        openStore(url).catch((error) => console.log(error.code, error.message))`)
        expect({ output, errors }).toEqual({ output: expect.stringMatching(/^ACCESS_DENIED .*permissions/), errors: '' })
      }
    })
  }

  if (process.platform === 'linux') {
    test('that may not grow keeps its entries, and accepts more when it may grow', async () => {
      const path = newPath()
      // A limit for the size of files is as a full disk, and can be lifted.
      const program = `
      const { execFileSync } = require('node:child_process')
      const { openStore } = require('.')
      async function main () {
        const store = await openStore(${JSON.stringify(`redb:${path}`)})
        const kept = []
        const codes = new Set()
        const fill = async (number) => {
          const key = 'key ' + number
          await store.set(key, key.repeat(3_000)).then(() => kept.push(key), (error) => codes.add(error.code))
        }
        for (let number = 0; codes.size === 0; number++) await fill(number)
        await Promise.all(Array.from({ length: 100 }, (_, number) => fill('at once ' + number)))
        const before = kept.length
        const read = async () => (await store.getMany(kept)).every((value, place) => String(value) === kept[place].repeat(3_000))
        console.log([...codes].join(), before > 10, await read())
        execFileSync('prlimit', ['--pid', process.pid, '--fsize=unlimited'])
        while (!await store.set('after', '1').then(() => true, (error) => error.code !== 'STORE_FULL')) await new Promise((resolve) => setTimeout(resolve, 5))
        for (let number = 0; number < 100; number++) await fill('more ' + number)
        console.log(kept.length === before + 100, await read(), await store.increment('after'))
        await store.close()
        const again = await openStore(${JSON.stringify(`redb:${path}`)})
        console.log(await again.increment('after'))
      }
      main()`
      const child = spawn('bash', ['-c', 'ulimit -S -f 2000; exec "$0" -e "$1"', process.execPath, program], { cwd: ROOT })
      let output = ''
      child.stdout.on('data', (chunk) => { output += chunk })
      child.stderr.on('data', (chunk) => { output += chunk })
      await once(child, 'close')
      expect(output).toBe('STORE_FULL true true\ntrue true 2\n3\n')
    })
  }

  test('that is truncated while it is open fails with a code, and works again when it is restored', async () => {
    const path = newPath()
    const store = await open(path, { cacheBytes: 1 })
    const entries = Array.from({ length: 1_000 }, (_, number) => [String(number), 'x'.repeat(500)])
    await store.setMany(entries)
    const copy = newPath()
    copyFileSync(path, copy)
    truncateSync(path, 8_192)
    await expect(store.getMany(entries.map(([key]) => key))).rejects.toMatchObject({ code: 'STORE_DAMAGED' })
    await expect(store.set('key', 'value')).rejects.toMatchObject({ code: 'STORE_DAMAGED' })
    writeFileSync(path, readFileSync(copy))
    await until(() => store.get('999').then(() => true, () => false))
    expect((await store.getMany(entries.map(([key]) => key))).every((value) => value?.length === 500)).toBe(true)
    await store.set('key', 'value')
  })

  test('that is damaged anywhere never ends the process', async () => {
    const path = newPath()
    const store = await open(path)
    await store.setMany(Array.from({ length: 2_000 }, (_, number) => [String(number), 'x'.repeat(number % 300)]))
    await store.close()
    const good = readFileSync(path)
    const codes = new Set()
    for (let round = 0; round < 60; round++) {
      const bytes = Buffer.from(good)
      const at = Math.floor(bytes.length * round / 60)
      bytes.fill(round * 37, at, at + 3_000)
      writeFileSync(path, round % 5 === 4 ? bytes.subarray(0, at) : bytes)
      const damaged = await open(path).catch((error) => codes.add(error.code) && undefined)
      if (damaged === undefined) continue
      const operations = [() => damaged.get('7'), () => damaged.keys().next(), () => damaged.set('new', 'x'), () => damaged.deleteMany(['1', '2']), () => damaged.get('1999')]
      for (const operation of operations) await operation().catch((error) => codes.add(error.code))
      await damaged.close()
    }
    expect(codes).toContain('STORE_DAMAGED')
    codes.delete('STORE_DAMAGED')
    codes.delete('STORE_UNAVAILABLE')
    expect([...codes]).toEqual([])
  })

  test('with another name for the same bytes is locked', async () => {
    const [path, link] = [newPath(), newPath()]
    const store = await open(path)
    linkSync(path, link)
    await expect(open(link)).rejects.toMatchObject(refusedWith('STORE_UNAVAILABLE', /open in another process/))
    await store.set('key', 'value')
  })
})

describe('what has been acknowledged', () => {
  test(`survives each of ${ROUNDS} sudden deaths, and nothing is half written`, async () => {
    const path = newPath()
    const file = join(directory, 'acknowledgements')
    const set = []
    const total = { counts: 0, counted: 0, acknowledged: 0 }
    for (let round = 0; round < ROUNDS; round++) {
      writeFileSync(file, '')
      const child = spawn(process.execPath, [require.resolve('./support/redb-writer.js'), `redb:${path}`, round, file])
      const ended = once(child, 'close')
      await until(() => statSync(file).size > 0)
      await sleep(Math.random() * 60)
      child.kill('SIGKILL')
      expect((await ended)[1]).toBe('SIGKILL')

      const store = await open(path)
      const now = { set: [], deleted: [], many: [] }
      for (const line of readFileSync(file, 'utf8').trimEnd().split('\n')) {
        const [what, key] = line.split(' ')
        if (what in now) now[what].push(key)
        else if (what in total) total[what]++
        total.acknowledged += what !== 'opened' && what !== 'counts'
      }
      const text = async (keys) => (await store.getMany(keys)).map((value) => value?.toString())
      expect(await text(now.set)).toEqual(now.set.map(valueOf))
      expect(await text(now.deleted)).toEqual(now.deleted.map(() => undefined))
      const parts = (key) => Array.from({ length: 5 }, (_, place) => `${key}:${place}`)
      expect(await text(now.many.flatMap(parts))).toEqual(now.many.flatMap((key) => parts(key).map(() => valueOf(key))))
      // Those that were on their way are there as a whole or not at all.
      const batches = new Map()
      for (const writer of [2, 6, 10]) {
        for await (const key of store.keys({ prefix: `${round}:${writer}:` })) {
          const batch = key.slice(0, key.lastIndexOf(':'))
          batches.set(batch, (batches.get(batch) ?? 0) + 1)
        }
      }
      expect([...batches.values()].every((count) => count === 5)).toBe(true)
      const count = Number(await store.get('count') ?? 0)
      expect(count).toBeGreaterThanOrEqual(total.counted)
      expect(count).toBeLessThanOrEqual(total.counts)
      set.push(...now.set)
      await store.close()
    }
    const store = await open(path)
    expect((await store.getMany(set)).map(String)).toEqual(set.map(valueOf))
    expect(total.acknowledged).toBeGreaterThan(ROUNDS)
  }, 300_000)

  test('is there after process.exit() while other writes are on their way', async () => {
    const path = newPath()
    for (let round = 0; round < 5; round++) {
      const { code, errors } = await run(path, `
        openStore(url).then(async (store) => {
          for (let number = 0; number < 1_000; number++) store.set('pending ' + number, 'x'.repeat(1_000)).catch(() => {})
          await store.increment('count')
          process.exit()
        })`)
      expect({ code, errors }).toEqual({ code: 0, errors: '' })
    }
    expect(await (await open(path)).increment('count', 0)).toBe(5)
  })

  test('survives the termination of a worker, and the other workers continue', async () => {
    const path = newPath()
    const store = await open(path)
    for (let round = 0; round < 5; round++) {
      const worker = new Worker(`
        const { workerData: { module, url } } = require('node:worker_threads')
        require(module).openStore(url).then(async (store) => {
          for (let number = 0; ; number++) {
            for (let more = 0; more < 50; more++) store.set('pending ' + number, 'x'.repeat(1_000)).catch(() => {})
            await store.increment('count')
          }
        })`, { eval: true, workerData: { module: require.resolve('..'), url: `redb:${path}` } })
      const before = Number(await store.get('count') ?? 0)
      await until(async () => Number(await store.get('count') ?? 0) > before)
      await worker.terminate()
    }
    expect(await store.increment('count', 0)).toBeGreaterThanOrEqual(5)
    await store.close()
    // Those of the workers let go of it too.
    await until(async () => (await run(path, 'openStore(url).then((store) => store.close()).catch((error) => console.log(error.code))')).output === '')
  })

  test('is there when the process ends by itself, with the store open and idle', async () => {
    const path = newPath()
    const program = `
      openStore(url).then(async (store) => {
        store.watch()
        await store.set('short', 'x', { ttlMs: 60_000 })
        store.increment('count').then(console.log)
      })`
    for (const count of [1, 2, 3]) {
      const { code, output, errors } = await run(path, program)
      expect({ code, output, errors }).toEqual({ code: 0, output: `${count}\n`, errors: '' })
    }
  })
})

test('an idle store sleeps, with lifetimes and without', async () => {
  for (const options of [undefined, { ttlMs: 60_000 }]) {
    const { code, output } = await run(newPath(), `
      openStore(url).then(async (store) => {
        await store.set('key', 'value', ${JSON.stringify(options)})
        const [start, before] = [process.hrtime.bigint(), process.cpuUsage()]
        await new Promise((resolve) => setTimeout(resolve, 500))
        const { user, system } = process.cpuUsage(before)
        console.log((user + system) * 1_000 < Number(process.hrtime.bigint() - start) / 4)
        await store.close()
      })`)
    expect({ code, output }).toEqual({ code: 0, output: 'true\n' })
  }
})

test('16 writers of one value lose no update', async () => {
  const store = await open(newPath())
  await store.set('count', '0')
  await Promise.all(Array.from({ length: 16 }, async () => {
    for (let done = 0; done < 25;) {
      const before = String(await store.get('count'))
      if (await store.compareAndSwap('count', before, String(Number(before) + 1))) done++
    }
  }))
  expect(String(await store.get('count'))).toBe('400')
})

test('an operation that fails leaves those that are stored with it', async () => {
  const store = await open(newPath())
  await store.set('text', 'no number')
  const results = await Promise.allSettled(Array.from({ length: 90 }, (_, number) =>
    number % 3 === 0 ? store.increment('text') : number % 3 === 1 ? store.increment('count') : store.set(`key ${number}`, 'x')))
  expect(results.filter(({ status }) => status === 'rejected').map(({ reason }) => reason.code)).toEqual(Array(30).fill('INVALID_ARGUMENT'))
  expect(await store.increment('count', 0)).toBe(30)
  let keys = 0
  for await (const key of store.keys({ prefix: 'key ' })) keys += key.length > 0
  expect(keys).toBe(30)
  expect(String(await store.get('text'))).toBe('no number')
})

test('lifetimes continue while the file is closed, and expired keys are removed from it', async () => {
  const path = newPath()
  const store = await open(path)
  await store.setMany(Array.from({ length: 3_000 }, (_, number) => [`short ${number}`, 'x']), { ttlMs: 1_000 })
  await store.set('long', 'x', { ttlMs: 60_000 })
  await store.close()
  const other = await open(path)
  const changes = other.watch('short')
  expect(await other.has('long')).toBe(true)
  const gone = new Set()
  while (gone.size < 1_000) {
    const { value: { type, key } } = await changes.next()
    if (type === 'delete') gone.add(key)
  }
  await changes.return()
  const keys = []
  for await (const key of other.keys()) keys.push(key)
  expect(keys).toEqual(['long'])
})
