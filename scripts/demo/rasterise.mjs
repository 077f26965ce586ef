// Draws SVG files as PNGs of one size: node rasterise.mjs SIZE LIST, where LIST has lines "SVG<TAB>PNG".
// Needs @resvg/resvg-js 2.6.2 where node looks for modules; build.py says how.
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'

const require = createRequire(process.cwd() + '/')
const { Resvg } = require('@resvg/resvg-js')
const [size, list] = process.argv.slice(2)
for (const line of readFileSync(list, 'utf8').trim().split('\n')) {
  const [svg, png] = line.split('\t')
  try {
    const options = { fitTo: { mode: 'width', value: Number(size) }, font: { loadSystemFonts: false } }
    writeFileSync(png, new Resvg(readFileSync(svg, 'utf8'), options).render().asPng())
  } catch (error) {
    console.error(`${svg}: ${error}`) // the concept is left out of this style
  }
}
