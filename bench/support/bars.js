'use strict'

// Bar charts as SVG, with grey text and no background, readable in light and dark mode.

const WIDTH = 840
const MARGIN = 12
const LABELS = 270
/** The space for figures to the right of the longest bar. */
const FIGURES = 130
const ROW = 22
const BAR = 12
const HEADING = 26
const GAP = 14

const GREY = '#777'
/** Labels identify the bars; colours only help. */
const COLORS = [['extism-host', '#2f81d6'], ['JavaScript SDK', '#d08a1d'], ['', '#8a8a8a']]

function escape (text) {
  return text.replace(/[&<>]/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[character])
}

function text (x, y, content, attributes = '') {
  return `<text x="${x}" y="${y}"${attributes}>${escape(content)}</text>`
}

function line (x1, y1, x2, y2) {
  return `<path d="M${x1.toFixed(1)} ${y1.toFixed(1)}L${x2.toFixed(1)} ${y2.toFixed(1)}"/>`
}

function row ({ label, median, least, most, text: figure, ratio }, scale, top) {
  const middle = top + ROW / 2
  const left = MARGIN + LABELS
  const x = (value) => left + Math.max(0, value) * scale
  const [, color] = COLORS.find(([prefix]) => label.startsWith(prefix))
  return [
    text(left - 8, middle + 4, label, ' text-anchor="end"'),
    `<rect x="${left}" y="${middle - BAR / 2}" width="${(x(median) - left).toFixed(1)}" height="${BAR}" fill="${color}" fill-opacity="0.7"/>`,
    `<g stroke="${GREY}" stroke-width="1.5">`,
    line(x(least), middle, x(most), middle),
    line(x(least), middle - 4, x(least), middle + 4),
    line(x(most), middle - 4, x(most), middle + 4),
    '</g>',
    text((x(Math.max(most, median)) + 8).toFixed(1), middle + 4, `${figure} (${ratio})`)
  ].join('\n')
}

/**
 * Draws panels below each other, with bars from 0 and an own scale for each. A panel is `{ title, better, rows }`, and a
 * row is `{ label, median, least, most, text, range, ratio }`.
 */
function bars (title, conditions, panels) {
  const parts = []
  let top = MARGIN + 20
  parts.push(text(MARGIN, top - 4, title, ' font-size="16" font-weight="bold"'))
  for (const { title, better, rows } of panels) {
    top += GAP
    parts.push(text(MARGIN, top + 14, `${title} (${better})`, ' font-weight="bold"'))
    top += HEADING
    const most = Math.max(...rows.map((row) => Math.max(row.most, row.median)))
    const scale = most > 0 ? (WIDTH - 2 * MARGIN - LABELS - FIGURES) / most : 0
    for (const each of rows) {
      parts.push(row(each, scale, top))
      top += ROW
    }
  }
  top += GAP + 14
  parts.push(text(MARGIN, top, 'Bars are medians over the rounds, thin lines go from the least to the most; × is times the JavaScript SDK in its first row.', ' font-size="11"'))
  parts.push(text(MARGIN, top + 16, conditions, ' font-size="11"'))
  const height = top + 16 + MARGIN

  // For screen readers.
  const description = panels.map(({ title, better, rows }) =>
    `${title} (${better}): ${rows.map(({ label, text, range }) => `${label} ${text}, from ${range}`).join('; ')}.`)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img" aria-labelledby="title description" font-family="system-ui, sans-serif" font-size="12.5" fill="${GREY}">`,
    `<title id="title">${escape(title)}</title>`,
    `<desc id="description">${escape(description.join('\n'))}</desc>`,
    ...parts,
    '</svg>',
    ''
  ].join('\n')
}

module.exports = { bars }
