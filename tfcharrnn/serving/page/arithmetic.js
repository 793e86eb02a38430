// Numbers: exp and what is made from it, vectors, products with matrices, and random numbers.
//
// JavaScript leaves the last bits of Math.exp and Math.tanh to each browser. Here everything is computed from + - * /
// and square roots, whose results IEEE 754 fixes, and always in the same order. So every browser computes the same
// bits, and the same seed gives the same text everywhere.
//
// Weights are float32 and activations float64: then a product needs to convert only one of its factors.

const LN2 = Math.LN2;
// ln 2 as a sum: the first part has so few bits that its product with an exponent is exact
const LN2_HIGH = Math.fround(LN2);
const LN2_LOW = LN2 - LN2_HIGH;
// beyond these, exp would overflow, or no longer be a normal number
const MAX_EXPONENT = 700;

const POWERS_OF_TWO = new Float64Array(2 * 1022 + 1);  // 2^k at k + 1022

/** Fills the table of powers of two by doubling and halving, which are exact. */
function fillPowersOfTwo() {
  POWERS_OF_TWO[1022] = 1;
  for (let k = 1; k <= 1022; k++) {
    POWERS_OF_TWO[1022 + k] = POWERS_OF_TWO[1022 + k - 1] * 2;
    POWERS_OF_TWO[1022 - k] = POWERS_OF_TWO[1022 - k + 1] / 2;
  }
}
fillPowersOfTwo();

/**
 * Returns e^x to 13 digits or more, for x cut to +-700, so that it is always finite and positive.
 *
 * With x = k ln 2 + r and |r| <= ln 2 / 2, that is 2^k times the Taylor series of e^r.
 */
function exp(x) {
  if (x > MAX_EXPONENT) x = MAX_EXPONENT;
  if (x < -MAX_EXPONENT) x = -MAX_EXPONENT;
  const k = Math.floor(x / LN2 + 0.5);
  const r = x - k * LN2_HIGH - k * LN2_LOW;
  let sum = 1 + r / 12;
  sum = 1 + sum * r * (1 / 11);
  sum = 1 + sum * r * (1 / 10);
  sum = 1 + sum * r * (1 / 9);
  sum = 1 + sum * r * (1 / 8);
  sum = 1 + sum * r * (1 / 7);
  sum = 1 + sum * r * (1 / 6);
  sum = 1 + sum * r * (1 / 5);
  sum = 1 + sum * r * (1 / 4);
  sum = 1 + sum * r * (1 / 3);
  sum = 1 + sum * r * (1 / 2);
  return (1 + sum * r) * POWERS_OF_TWO[1022 + k];
}

function sigmoid(a) {
  return 1 / (1 + exp(-a));
}

function tanh(a) {
  const decay = exp(-2 * Math.abs(a));
  const value = (1 - decay) / (1 + decay);
  return a < 0 ? -value : value;
}

/** Returns clip(slope a + 1/2, 0, 1). */
function hardSigmoid(a, slope) {
  return Math.min(Math.max(slope * a + 0.5, 0), 1);
}

/** The activations of `--recurrent_activation`. */
const GATES = {
  sigmoid,
  hard_sigmoid: (a) => hardSigmoid(a, 0.2),
  hard_sigmoid_6: (a) => hardSigmoid(a, 1 / 6),
};

/** Adds x to y. */
function addTo(y, x) {
  for (let i = 0; i < y.length; i++) y[i] += x[i];
}

/** Replaces x by gain (x - mean) / sqrt(variance + 1e-5), plus shift if there is one. */
function normalise(x, gain, shift = null) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i];
  const mean = sum / x.length;
  let squares = 0;
  for (let i = 0; i < x.length; i++) squares += (x[i] - mean) * (x[i] - mean);
  const scale = 1 / Math.sqrt(squares / x.length + 1e-5);
  for (let i = 0; i < x.length; i++) x[i] = gain[i] * (x[i] - mean) * scale + (shift ? shift[i] : 0);
}

/**
 * Writes the product of a matrix [rows, columns] and x [columns] into y [rows].
 *
 * The exporter has transposed the matrices, so that a sum runs along a row, through neighbouring memory. Four rows go
 * together: each entry of x is loaded once for four products, and four sums do not wait for each other.
 */
function multiply(matrix, x, y) {
  const { values, rows, columns } = matrix;
  const grouped = rows - (rows % 4);
  for (let row = 0; row < grouped; row += 4) {
    const first = row * columns, second = first + columns, third = second + columns, fourth = third + columns;
    let sum1 = 0, sum2 = 0, sum3 = 0, sum4 = 0;
    for (let i = 0; i < columns; i++) {
      const factor = x[i];
      sum1 += values[first + i] * factor;
      sum2 += values[second + i] * factor;
      sum3 += values[third + i] * factor;
      sum4 += values[fourth + i] * factor;
    }
    y[row] = sum1;
    y[row + 1] = sum2;
    y[row + 2] = sum3;
    y[row + 3] = sum4;
  }
  for (let row = grouped; row < rows; row++) {
    let sum = 0;
    for (let i = 0; i < columns; i++) sum += values[row * columns + i] * x[i];
    y[row] = sum;
  }
}

/** Returns a row of a matrix, without copying it. */
function rowOf(matrix, row) {
  return matrix.values.subarray(row * matrix.columns, (row + 1) * matrix.columns);
}

/**
 * Returns a function that draws numbers in [0, 1), the same ones for the same seed, an integer.
 *
 * The generator is sfc32 (small fast counting, by Chris Doty-Humphrey, of PractRand): three words of state are mixed
 * with a counter, so that its period is at least 2^32. The first numbers are skipped, since they resemble the seed.
 */
function makeRandom(seed) {
  let a = 0, b = Math.floor(seed / 2 ** 32) | 0, c = seed | 0, counter = 1;
  function nextWord() {
    const word = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + word) | 0;
    return word >>> 0;
  }
  for (let i = 0; i < 12; i++) nextWord();
  return () => (nextWord() * 2 ** 21 + (nextWord() >>> 11)) / 2 ** 53;
}
