// Numeric work in AssemblyScript, for bench/compute.js. Each export writes its result, or a checksum of it.
import { Host } from '@extism/as-pdk'

const SIDE: i32 = 160
const ITERATIONS: i32 = 300
const PRIMES_BELOW: i32 = 1_500_000
const ORDER: i32 = 160

/** The number of iterations until each point of the plane escapes, as one byte per point. */
export function mandelbrot (): i32 {
  const pixels = new Uint8Array(SIDE * SIDE)
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      const real = 3.0 * x / SIDE - 2.0
      const imaginary = 2.0 * y / SIDE - 1.0
      let a = 0.0
      let b = 0.0
      let count = 0
      while (a * a + b * b <= 4.0 && count < ITERATIONS) {
        const next = a * a - b * b + real
        b = 2.0 * a * b + imaginary
        a = next
        count++
      }
      pixels[y * SIDE + x] = count as u8
    }
  }
  Host.output(pixels)
  return 0
}

/** The number of primes below a limit. */
export function sieve (): i32 {
  const isComposite = new Uint8Array(PRIMES_BELOW)
  let count = 0
  for (let i = 2; i < PRIMES_BELOW; i++) {
    if (isComposite[i]) continue
    count++
    for (let multiple = (i as i64) * i; multiple < PRIMES_BELOW; multiple += i) isComposite[multiple as i32] = 1
  }
  Host.outputString(count.toString())
  return 0
}

/** The trace of the product of two square matrices. */
export function matrix (): i32 {
  const left = new Float64Array(ORDER * ORDER)
  const right = new Float64Array(ORDER * ORDER)
  const product = new Float64Array(ORDER * ORDER)
  for (let i = 0; i < ORDER * ORDER; i++) {
    left[i] = (i * 7 % 11) as f64
    right[i] = (i * 5 % 13) as f64
  }
  for (let row = 0; row < ORDER; row++) {
    for (let column = 0; column < ORDER; column++) {
      let sum = 0.0
      for (let k = 0; k < ORDER; k++) sum += left[row * ORDER + k] * right[k * ORDER + column]
      product[row * ORDER + column] = sum
    }
  }
  let trace = 0.0
  for (let i = 0; i < ORDER; i++) trace += product[i * ORDER + i]
  Host.outputString(trace.toString())
  return 0
}

// A thrown error ends the call with a trap.
function abort_ (message: string | null, file: string | null, line: u32, column: u32): void {}
