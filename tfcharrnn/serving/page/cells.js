// One step of each cell.
//
// A step gets p = x W + b and q = h U (+ b'), both [blocks * hidden], the state before it, and the weights of its
// layer. It replaces the state, a list of vectors [hidden] of which the first is the output h, by the state after it.
// The formulas and their sources are in tfcharrnn/model/cells/.

/** Elman network: h' = tanh(p + q). */
function stepRnn(p, q, [h]) {
  for (let i = 0; i < h.length; i++) h[i] = tanh(p[i] + q[i]);
}

/** LSTM, its gates i, f, c, o from a = p + q: c' = f c + i g, h' = o tanh(c'). */
function stepLstm(p, q, state, { gate }) {
  addTo(q, p);
  updateLstmState(q, state, gate);
}

/** Computes i, f, g and o from their sums a, in this order, and from them the state of an LSTM after the step. */
function updateLstmState(a, [h, c], gate) {
  const size = h.length;
  for (let i = 0; i < size; i++) {
    c[i] = gate(a[size + i]) * c[i] + gate(a[i]) * tanh(a[2 * size + i]);
    h[i] = gate(a[3 * size + i]) * tanh(c[i]);
  }
}

/** GRU, its gates z, r, h, the reset after the product: n = tanh(p_h + r q_h), h' = z h + (1 - z) n. */
function stepGru(p, q, [h], { gate }) {
  const size = h.length;
  for (let i = 0; i < size; i++) {
    const z = gate(p[i] + q[i]);
    const r = gate(p[size + i] + q[size + i]);
    const n = tanh(p[2 * size + i] + r * q[2 * size + i]);
    h[i] = z * h[i] + (1 - z) * n;
  }
}

/** LSTM with a = LN(p) + LN(q) + shift, and h' = o tanh(LN(c')). */
function stepLayerNormLstm(p, q, [h, c], { input_gain, recurrent_gain, shift, cell_gain, cell_shift, scratch }) {
  const size = h.length, a = scratch.sums, normalised = scratch.cell;
  a.set(p);
  normalise(a, input_gain);
  normalise(q, recurrent_gain, shift);
  addTo(a, q);
  for (let i = 0; i < size; i++) c[i] = sigmoid(a[size + i]) * c[i] + sigmoid(a[i]) * tanh(a[2 * size + i]);
  normalised.set(c);
  normalise(normalised, cell_gain, cell_shift);
  for (let i = 0; i < size; i++) h[i] = sigmoid(a[3 * size + i]) * tanh(normalised[i]);
}

/** Multiplicative LSTM, its blocks m, i, f, c, o: the gates read m V in place of h, where m = p_m q. */
function stepMultiplicativeLstm(p, q, state, { gate_kernel, scratch }) {
  const size = q.length, a = scratch.sums;
  for (let i = 0; i < size; i++) q[i] *= p[i];
  multiply(gate_kernel, q, a);
  addTo(a, p.subarray(size));
  updateLstmState(a, state, sigmoid);
}

/** minGRU, its blocks z, n: h' = (1 - z) h + z n. */
function stepMinGru(p, q, [h]) {
  const size = h.length;
  for (let i = 0; i < size; i++) {
    const z = sigmoid(p[i]);
    h[i] = (1 - z) * h[i] + z * p[size + i];
  }
}

/** minLSTM, its blocks i, f, n: h' = (f h + i n) / (f + i). */
function stepMinLstm(p, q, [h]) {
  const size = h.length;
  for (let i = 0; i < size; i++) {
    const ratio = (1 + exp(-p[size + i])) / (1 + exp(-p[i]));  // i / f, which is finite since exp is
    h[i] = h[i] / (1 + ratio) + p[2 * size + i] / (1 + 1 / ratio);
  }
}

/** SRU, its blocks u, f, r, v: c' = f c + (1 - f) u, h' = r tanh(c') + (1 - r) v. */
function stepSru(p, q, [h, c]) {
  const size = h.length;
  for (let i = 0; i < size; i++) {
    const f = sigmoid(p[size + i]), r = sigmoid(p[2 * size + i]);
    c[i] = f * c[i] + (1 - f) * p[i];
    h[i] = r * tanh(c[i]) + (1 - r) * p[3 * size + i];
  }
}

/** The cells by their names in `--cell`: a step, the vectors in a state, and the blocks of `scratch.sums`. */
const CELLS = {
  rnn: { step: stepRnn, stateSize: 1, sums: 0 },
  lstm: { step: stepLstm, stateSize: 2, sums: 0 },
  gru: { step: stepGru, stateSize: 1, sums: 0 },
  lnlstm: { step: stepLayerNormLstm, stateSize: 2, sums: 4 },
  mlstm: { step: stepMultiplicativeLstm, stateSize: 2, sums: 4 },
  mingru: { step: stepMinGru, stateSize: 1, sums: 0 },
  minlstm: { step: stepMinLstm, stateSize: 1, sums: 0 },
  sru: { step: stepSru, stateSize: 2, sums: 0 },
};
