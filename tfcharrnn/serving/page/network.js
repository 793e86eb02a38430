// The network: weights, layers, and the logits of the next symbol.

/** Returns the bytes that a base64 text stands for. */
function decodeBase64(text) {
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** Returns the numbers of little-endian IEEE half floats; they are all finite. */
function decodeFloat16(bytes) {
  const values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    // an exponent of 0 marks numbers without the leading 1
    const units = exponent ? 1024 + fraction : fraction;
    const size = units * POWERS_OF_TWO[1022 + Math.max(exponent, 1) - 25];
    values[i] = bits & 0x8000 ? -size : size;
  }
  return values;
}

/** Returns the numbers of little-endian IEEE single floats. */
function decodeFloat32(bytes) {
  const view = new DataView(bytes.buffer), values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * i, true);
  return values;
}

/** Returns the numbers of signed bytes, each row [columns] multiplied by its scale. */
function decodeInt8(bytes, columns, scales) {
  const values = new Float32Array(bytes.length);
  for (let i = 0; i < values.length; i++) values[i] = ((bytes[i] << 24) >> 24) * scales[Math.floor(i / columns)];
  return values;
}

/** Returns an array of the page: a vector as a Float32Array, a matrix as { values, rows, columns }. */
function decodeArray({ shape, type, data, scales }) {
  const bytes = decodeBase64(data);
  let values;
  if (type === "int8") values = decodeInt8(bytes, shape[1], decodeFloat32(decodeBase64(scales)));
  else values = type === "float16" ? decodeFloat16(bytes) : decodeFloat32(bytes);
  return shape.length === 1 ? values : { values, rows: shape[0], columns: shape[1] };
}

/** One recurrent layer; it knows its weights, but has no state. */
class Layer {
  /** Takes the name of the cell, that of the gates' activation, and the weights by the names in a checkpoint. */
  constructor(cell, activation, hiddenSize, weights) {
    this.cell = CELLS[cell];
    this.weights = {
      ...weights,
      gate: GATES[activation],
      scratch: { sums: new Float64Array(this.cell.sums * hiddenSize), cell: new Float64Array(hiddenSize) },
    };
    const kernel = weights.recurrent_kernel;
    this.q = kernel ? new Float64Array(kernel.rows) : null;
  }

  /** Replaces the layer's state by that after a step that gets p = x W + b. */
  step(p, state) {
    const { recurrent_kernel, recurrent_bias } = this.weights;
    if (this.q) multiply(recurrent_kernel, state[0], this.q);
    if (recurrent_bias) addTo(this.q, recurrent_bias);
    this.cell.step(p, this.q, state, this.weights);
  }
}

/**
 * The network. A state is a list of the states of its layers, each a list of vectors [hidden].
 *
 * The id after the last symbol stands for no symbol, an input of zeros.
 */
class Network {
  constructor(description) {
    this.description = description;
    const { hiddenSize, numBlocks, numSymbols } = description;
    this.arrays = {};
    for (const [name, array] of Object.entries(description.arrays)) this.arrays[name] = decodeArray(array);
    this.layers = [];
    for (let index = 0; index < description.numLayers; index++) {
      const weights = this.selectArrays(`cells/${index}/`);
      this.layers.push(new Layer(description.cell, description.activation, hiddenSize, weights));
    }
    this.outputKernel = this.arrays.output_kernel || this.arrays.embedding;
    this.firstSums = new Map();
    this.sums = new Float64Array(numBlocks * hiddenSize);
    this.combined = new Float64Array(hiddenSize);
    this.logits = new Float64Array(numSymbols);
  }

  /** Returns the arrays whose names begin with a prefix, by the rest of their names. */
  selectArrays(prefix) {
    const names = Object.keys(this.arrays).filter((name) => name.startsWith(prefix));
    return Object.fromEntries(names.map((name) => [name.slice(prefix.length), this.arrays[name]]));
  }

  /** Returns the state before the first symbol: zeros, or what the model has learned. */
  makeInitialState() {
    return this.makeState((layer, index) => this.arrays[`initial_states/${layer}/${index}`]);
  }

  /** Returns the state in which training stopped reading a stream. */
  makeCarriedState() {
    return this.makeState((layer, index) => this.arrays[`carried/${layer}/${index}`]);
  }

  /** Makes a state of the vectors that a function of layer and index returns; zeros where it returns none. */
  makeState(find) {
    const { hiddenSize } = this.description;
    return this.layers.map(({ cell }, layer) => Array.from({ length: cell.stateSize }, (_, index) =>
      Float64Array.from(find(layer, index) || new Float64Array(hiddenSize))));
  }

  /** Replaces the state by that after reading a symbol. */
  read(id, state) {
    this.layers.forEach((layer, index) => {
      layer.step(index ? this.project(index, this.combineOutputs(state, index)) : this.lookUp(id), state[index]);
    });
  }

  /** Returns the logits of the next symbol; the array is overwritten by the next call. */
  computeLogits(state) {
    multiply(this.outputKernel, this.combineOutputs(state, this.layers.length), this.logits);
    addTo(this.logits, this.arrays.output_bias);
    return this.logits;
  }

  /** Returns x W + b of the first layer for a symbol: a row of a table, computed when the symbol first occurs. */
  lookUp(id) {
    if (!this.firstSums.has(id)) this.firstSums.set(id, this.computeFirstSums(id));
    return this.firstSums.get(id);
  }

  computeFirstSums(id) {
    const { numSymbols } = this.description, { kernel, bias } = this.layers[0].weights;
    const sums = new Float64Array(this.sums.length);
    const isSymbol = id < numSymbols;
    // a one-hot vector times W is a row of W
    if (isSymbol && this.arrays.embedding) multiply(kernel, rowOf(this.arrays.embedding, id), sums);
    else if (isSymbol) sums.set(rowOf(kernel, id));
    if (bias) addTo(sums, bias);
    return sums;
  }

  /** Returns x W + b of a layer that is not the first. */
  project(index, x) {
    const { kernel, bias } = this.layers[index].weights;
    multiply(kernel, x, this.sums);
    if (bias) addTo(this.sums, bias);
    return this.sums;
  }

  /** Returns what leaves the first `count` layers: the last output, or the sum of all, and that normalised. */
  combineOutputs(state, count) {
    const { residual } = this.description, combined = this.combined;
    combined.set(state[count - 1][0]);
    for (let layer = 0; residual && layer < count - 1; layer++) addTo(combined, state[layer][0]);
    const gain = this.arrays[`norms/${count - 1}/gain`];
    if (gain) normalise(combined, gain, this.arrays[`norms/${count - 1}/shift`]);
    return combined;
  }
}
