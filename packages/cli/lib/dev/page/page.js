/* global DataTransfer, EventSource, location */

// The page of `extism-host dev`. It only ever sets text: nothing that a plugin says becomes markup here.

const $ = (id) => document.getElementById(id)
const form = $('call')
const input = $('input')
const decoder = new TextDecoder('utf-8', { fatal: true })

/** The most that a view of an output shows, in bytes or characters; also the most that is highlighted. */
const MAX_SHOWN = 200_000
const MAX_HISTORY = 50
const MAX_DEPTH = 100
const BYTES_IN_ROW = 16

/** The first bytes of the image formats that browsers show. */
const IMAGES = [['image/png', /^\x89PNG/], ['image/jpeg', /^\xff\xd8\xff/], ['image/gif', /^GIF8/], ['image/webp', /^RIFF....WEBP/s], ['image/avif', /^....ftypavif/s],
  ['image/svg+xml', /^\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*<svg[\s>]/s]]

const TOKENS = /("(?:\\.|[^"\\\n])*"?)(\s*:)?|\b(?:true|false|null)\b|-?\b\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g

let state = { version: 0, functions: [], build: {} }
let history = []
/** The call that is shown, the one that runs, and how to stop that. */
let shown
let running

function element (name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}

function highlight (text) {
  if (text.length > MAX_SHOWN) return [text]
  const parts = []
  let at = 0
  for (const match of text.matchAll(TOKENS)) {
    const [whole, string, colon = ''] = match
    const kind = string === undefined ? (/^[tfn]/.test(whole) ? 'word' : 'number') : colon === '' ? 'string' : 'key'
    parts.push(text.slice(at, match.index), element('span', { className: kind }, string ?? whole), colon)
    at = match.index + whole.length
  }
  return [...parts, text.slice(at)]
}

const textOf = (bytes) => {
  try {
    return decoder.decode(bytes)
  } catch {
    return undefined
  }
}

const jsonOf = (text) => {
  try {
    return { value: JSON.parse(text) }
  } catch (error) {
    return { problem: error.message }
  }
}

/** Whether JSON is nested so deeply that its indentation would not fit into the memory or the stack. */
function isDeep (json) {
  let depth = 0
  for (const character of json.replace(/"(?:\\.|[^"\\])*"/g, '')) {
    if ('[{'.includes(character)) depth++
    else if (']}'.includes(character)) depth--
    if (depth > MAX_DEPTH) return true
  }
  return false
}

// The form

const chosen = (name) => form.querySelector(`[name=${name}]:checked`)?.value
const functionName = () => chosen('function')

/** The input as it is sent: text, or a file. */
const currentInput = () => chosen('kind') === 'file' ? $('file').files[0] : input.value

function showFunctions () {
  const before = functionName()
  const names = state.functions
  const selected = names.includes(before) ? before : names[0]
  $('functions').replaceChildren(...names.map((name) => element('label', {}, element('input', { type: 'radio', name: 'function', value: name, checked: name === selected }), name)))
  if (names.length === 0) $('functions').append(state.version === 0 ? 'The plugin is not loaded yet.' : 'The plugin exports no function to call.')
}

const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`

function showLines () {
  const name = functionName() ?? 'FUNCTION'
  const isFile = chosen('kind') === 'file'
  const file = $('file').files[0]?.name ?? 'FILE'
  const url = shellQuote(`${location.origin}/${encodeURIComponent(name)}`)
  $('curl').textContent = `curl ${url} ${isFile ? `--data-binary ${shellQuote(`@${file}`)}` : `--data-raw ${shellQuote(input.value)}`}`
  const argument = isFile ? `await readFile(${JSON.stringify(file)})` : JSON.stringify(input.value)
  $('javascript').textContent = `const output = await plugin.call(${JSON.stringify(name)}, ${argument})`
}

function showInput () {
  const kind = chosen('kind')
  $('editor').hidden = kind === 'file'
  $('file').hidden = kind !== 'file'
  // Without a last line break, the text box would be a line higher than its highlighted copy.
  $('highlighted').replaceChildren(...(kind === 'json' ? highlight(input.value) : [input.value]), '\n')
  const problem = kind === 'json' && input.value.trim() !== '' ? jsonOf(input.value).problem : undefined
  $('input-problem').textContent = problem === undefined ? '' : `Not valid JSON: ${problem}`
  showLines()
}

// Calls

async function run ({ name, kind, content }) {
  if (running !== undefined || name === undefined) return
  running = new AbortController()
  $('run').disabled = true
  $('stop').hidden = false
  $('summary').className = ''
  $('summary').textContent = `${name} is running …`
  const call = { name, kind, content, time: new Date() }
  try {
    const response = await fetch(`/_dev/call/${encodeURIComponent(name)}`, { method: 'POST', body: content, signal: running.signal })
    call.report = await response.json()
    if (!response.ok) throw new Error(call.report.message)
    const { outputId } = call.report
    if (outputId !== undefined) call.output = new Uint8Array(await (await fetch(`/_dev/output/${outputId}`)).arrayBuffer())
  } catch (error) {
    const message = error.name === 'AbortError' ? 'You stopped the call.' : `The request failed: ${error.message}`
    call.report = { function: name, error: { message, backtrace: [] }, logs: [], hostCalls: [] }
  }
  running = undefined
  $('run').disabled = false
  $('stop').hidden = true
  history = [call, ...history].slice(0, MAX_HISTORY)
  showCall(call)
  showHistory()
}

const runForm = () => run({ name: functionName(), kind: chosen('kind'), content: currentInput() })

function plural (count, noun) {
  return `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`
}

function outcomeOf ({ report: { error, durationMs, outputBytes, memoryBytes, version } }) {
  const parts = [error === undefined ? 'OK' : error.code ?? 'Error']
  if (durationMs !== undefined) parts.push(`${durationMs} ms`)
  if (outputBytes !== undefined) parts.push(plural(outputBytes, 'byte'))
  if (memoryBytes !== undefined) parts.push(`${Math.ceil(memoryBytes / 1024).toLocaleString('en')} KiB of memory`)
  if (version !== undefined) parts.push(`version ${version}`)
  return parts.join(' · ')
}

function showCall (call) {
  shown = call
  const { report, name } = call
  const { error, logs, hostCalls } = report
  $('summary').textContent = `${name}: ${outcomeOf(call)}`
  $('summary').className = error === undefined ? 'good' : 'bad'

  $('error').hidden = error === undefined
  if (error !== undefined) {
    const { code = '', docs } = error
    $('error-code').replaceChildren(docs === undefined ? code : element('a', { href: docs, target: '_blank', rel: 'noopener' }, code))
    $('error-message').textContent = error.message
    $('error-stack').hidden = error.stack === undefined
    $('error-stack').textContent = error.stack ?? ''
    $('backtrace').hidden = error.backtrace.length === 0
    $('frames').replaceChildren(...error.backtrace.map((frame) => element('li', {}, frame)))
  }

  $('success').hidden = call.output === undefined
  if (call.output !== undefined) {
    $('result').querySelector(`[name=view][value=${call.view ??= viewFor(call.output)}]`).checked = true
    showOutput()
  }

  $('host-calls').hidden = hostCalls.length === 0
  $('host-call-rows').replaceChildren(...hostCalls.map(({ name, args, result, error, durationMs }) => element('tr', {},
    element('td', {}, name),
    element('td', {}, args.join(', ')),
    element('td', { className: error === undefined ? '' : 'error' }, error ?? result ?? 'the call ended first'),
    element('td', {}, durationMs === undefined ? '' : `${durationMs} ms`))))

  $('logs').hidden = logs.length === 0
  $('log-lines').replaceChildren(...logs.map(({ level, message }) => element('li', { className: level }, element('b', {}, level), ` ${message}`)))
}

// Views of an output

/** The first bytes as characters, to compare them with what begins a file of some kind. */
const headOf = (bytes) => String.fromCharCode(...bytes.subarray(0, 512))
const imageType = (bytes) => IMAGES.find(([, head]) => head.test(headOf(bytes)))?.[0]

function viewFor (bytes) {
  if (imageType(bytes) !== undefined) return 'image'
  const text = textOf(bytes)
  if (text === undefined) return 'hex'
  if (/^\s*<(!doctype html|html)[\s>]/i.test(text)) return 'html'
  return /^\s*[[{]/.test(text) && jsonOf(text).problem === undefined ? 'json' : 'text'
}

function hexOf (bytes) {
  const rows = []
  for (let at = 0; at < Math.min(bytes.length, MAX_SHOWN / BYTES_IN_ROW); at += BYTES_IN_ROW) {
    const row = [...bytes.subarray(at, at + BYTES_IN_ROW)]
    const hex = row.map((byte) => byte.toString(16).padStart(2, '0')).join(' ')
    const ascii = row.map((byte) => byte >= 32 && byte < 127 ? String.fromCharCode(byte) : '.').join('')
    rows.push(`${at.toString(16).padStart(8, '0')}  ${hex.padEnd(3 * BYTES_IN_ROW)} ${ascii}`)
  }
  return rows.join('\n')
}

const shorten = (text) => text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)} … and ${plural(text.length - MAX_SHOWN, 'more character')}` : text

const views = {
  text: (bytes) => [element('pre', {}, shorten(new TextDecoder().decode(bytes)))],
  json (bytes) {
    const text = new TextDecoder().decode(bytes)
    const { value, problem } = jsonOf(text)
    if (problem !== undefined) return [`The output is not valid JSON: ${problem}`]
    return [element('pre', {}, ...highlight(shorten(isDeep(text) ? text : JSON.stringify(value, null, 2))))]
  },
  hex: (bytes) => [element('pre', {}, hexOf(bytes))],
  image (bytes) {
    const type = imageType(bytes)
    if (type === undefined) return ['The output is not an image that a browser shows.']
    const url = URL.createObjectURL(new Blob([bytes], { type }))
    const image = element('img', { src: url, alt: 'The output of the plugin' })
    image.onload = image.onerror = () => URL.revokeObjectURL(url)
    return [image]
  },
  // The server gives the frame its own content security policy, which allows styles but no scripts.
  html: (bytes, { outputId }) => {
    const frame = element('iframe', { title: 'The output of the plugin as HTML', src: `/_dev/output/${outputId}?as=html` })
    frame.setAttribute('sandbox', '')
    return [frame]
  }
}

function showOutput () {
  $('output').replaceChildren(...(shown.output.length === 0 ? ['The output is empty.'] : views[shown.view](shown.output, shown.report)))
}

// History

function describeInput ({ content }) {
  if (content instanceof File) return content.name
  if (content === undefined || content === '') return 'no input'
  return content.length > 60 ? `${content.slice(0, 60)}…` : content
}

/** Puts the input of an earlier call back into the form. */
function restore ({ name, kind, content }) {
  const radio = [...form.querySelectorAll('[name=function]')].find(({ value }) => value === name)
  if (radio !== undefined) radio.checked = true
  form.querySelector(`[name=kind][value=${kind}]`).checked = true
  if (kind === 'file') {
    const transfer = new DataTransfer()
    if (content !== undefined) transfer.items.add(content)
    $('file').files = transfer.files
  } else {
    input.value = content
  }
  showInput()
}

function showHistory () {
  $('history').hidden = history.length === 0
  $('calls').replaceChildren(...history.map((call) => {
    const title = `${call.name} ${describeInput(call)}`
    const show = element('button', { type: 'button', className: 'show', onclick: () => { restore(call); showCall(call) } }, title)
    const repeat = element('button', { type: 'button', ariaLabel: `Repeat ${title}`, onclick: () => { restore(call); run(call) } }, 'Repeat')
    const outcome = element('span', { className: call.report.error === undefined ? '' : 'error' }, `${outcomeOf(call)} · ${call.time.toLocaleTimeString()}`)
    return element('li', {}, repeat, show, outcome)
  }))
}

// The plugin's state

function showState () {
  const { name, version, build, failure } = state
  document.title = `${name} · extism-host dev`
  $('name').textContent = name
  const hasFailed = build.reason !== undefined || failure !== undefined
  const serving = version === 0 ? 'no version is loaded yet' : `version ${version} is loaded`
  $('state').textContent = build.isRunning ? `Building … ${serving}` : hasFailed ? `Failed: ${serving}` : version === 0 ? 'Loading …' : `Ready: ${serving}`
  $('failure').hidden = !hasFailed
  $('failure-title').textContent = build.reason !== undefined ? `The build failed: ${build.reason}` : `The plugin cannot be loaded${failure?.code === undefined ? '' : `: ${failure.code}`}`
  $('failure-text').textContent = build.reason !== undefined ? build.output : failure?.message ?? ''
}

const events = new EventSource('/_dev/events')
events.onmessage = ({ data }) => {
  const before = state
  state = JSON.parse(data)
  showState()
  if (state.functions.join() !== before.functions.join() || state.version === 0) showFunctions()
  showLines()
  if (state.version > before.version && before.version > 0 && $('again').checked && shown !== undefined) run(shown)
}
events.onerror = () => { $('state').textContent = 'The server is gone. The page connects again when it is back.' }

form.addEventListener('submit', (event) => {
  event.preventDefault()
  runForm()
})
form.addEventListener('input', showInput)
input.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return
  event.preventDefault()
  runForm()
})
$('stop').addEventListener('click', () => running?.abort())
$('result').addEventListener('change', ({ target }) => {
  if (target.name !== 'view') return
  shown.view = target.value
  showOutput()
})
form.addEventListener('click', async ({ target }) => {
  const id = target.dataset.copy
  if (id === undefined) return
  await navigator.clipboard.writeText($(id).textContent)
  target.textContent = 'Copied'
  setTimeout(() => { target.textContent = 'Copy' }, 1_500)
})
showInput()
