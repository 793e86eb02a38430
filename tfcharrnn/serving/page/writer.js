// Writes text with a network: reads the beginning, draws symbol after symbol, and decodes them.

/** A problem that the reader of the page can solve; its message is shown. */
class InputProblem extends Error {}

/** A character for a message or a table: a name or number where it cannot be seen. */
function nameCharacter(character) {
  const names = { "\n": "line end", " ": "space", "\t": "tab", "\r": "carriage return", "\u00a0": "no-break space" };
  if (character in names) return names[character];
  if (!/[\p{C}\p{Z}\p{M}]/u.test(character)) return character;
  return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

/** Returns a byte as Python writes it in a string. */
function escapeByte(byte) {
  return "\\x" + byte.toString(16).padStart(2, "0");
}

/** The symbols of a model: characters or bytes, after the special ones. */
class Vocabulary {
  constructor({ symbols, numSpecial, ofBytes, endId, normalisation }) {
    Object.assign(this, { symbols, numSpecial, ofBytes, endId, normalisation });
    this.ids = new Map(symbols.slice(numSpecial).map((symbol, index) => [symbol, numSpecial + index]));
  }

  /** Returns the symbols of a text, as a list; the symbol of a byte is the character with its number. */
  split(text) {
    return this.ofBytes ? Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)) : [...text];
  }

  /** Returns the symbols of a text as the training text was normalised. */
  normalise(text) {
    const { lowercase, dropDigits, dropped } = this.normalisation;
    let result = text;
    if (!this.ofBytes) result = result.replaceAll("\r\n", "\n");
    const toLower = (part) => part.toLowerCase();
    if (lowercase) result = this.ofBytes ? result.replace(/[A-Z]/g, toLower) : toLower(result);
    const digit = this.ofBytes ? /[0-9]/ : /\p{Nd}/u;
    return this.split(result).filter((symbol) => !dropped.includes(symbol) && !(dropDigits && digit.test(symbol)));
  }

  /** Returns the ids of a text that the model is to read; throws an `InputProblem` that names unknown symbols. */
  encode(text) {
    const symbols = this.normalise(text);
    const unknown = [...new Set(symbols.filter((symbol) => !this.ids.has(symbol)))];
    if (unknown.length) {
      const names = unknown.slice(0, 10).map((symbol) => `“${this.nameSymbol(symbol)}”`).join(", ");
      const more = unknown.length > 10 ? ` and ${unknown.length - 10} more` : "";
      throw new InputProblem(`The model does not know ${names}${more}; it has not occurred in its training text.`);
    }
    return symbols.map((symbol) => this.ids.get(symbol));
  }

  /** Returns what to call a symbol. */
  nameSymbol(symbol) {
    const byte = symbol.charCodeAt(0);
    return this.ofBytes && byte >= 128 ? escapeByte(byte) : nameCharacter(symbol);
  }

  /** Returns what to call the symbol with an id. */
  nameId(id) {
    return id === this.endId ? "end of text" : this.nameSymbol(this.symbols[id]);
  }
}

/** A network that has read part of a text, from the initial state or another one. */
class StreamReader {
  constructor(network, state = network.makeInitialState()) {
    this.network = network;
    this.state = state;
  }

  read(id) {
    this.network.read(id, this.state);
  }

  /** Returns the logits of the next symbol. */
  computeLogits() {
    return this.network.computeLogits(this.state);
  }
}

/** A network that sees only the last symbols of a text, and reads them from the initial state each time. */
class WindowReader {
  constructor(network, size) {
    this.network = network;
    this.window = new Array(size).fill(network.description.numSymbols);  // no symbols yet
  }

  read(id) {
    this.window.shift();
    this.window.push(id);
  }

  /** Returns the logits of the next symbol. */
  computeLogits() {
    const state = this.network.makeInitialState();
    for (const id of this.window) this.network.read(id, state);
    return this.network.computeLogits(state);
  }
}

/** Replaces logits by the probabilities at a temperature, of the `topK` likeliest symbols only unless that is 0. */
function computeProbabilities(logits, temperature, topK, numUnpredicted) {
  logits.fill(-Infinity, 0, numUnpredicted);
  if (topK && topK < logits.length - numUnpredicted) keepLikeliest(logits, topK);
  let highest = -Infinity;
  for (let id = 0; id < logits.length; id++) highest = Math.max(highest, logits[id]);
  let sum = 0;
  for (let id = 0; id < logits.length; id++) {
    logits[id] = logits[id] === -Infinity ? 0 : exp((logits[id] - highest) / temperature);
    sum += logits[id];
  }
  for (let id = 0; id < logits.length; id++) logits[id] /= sum;
  return logits;
}

/** Makes all logits but the `count` highest -Infinity; of equal ones, the lowest ids stay. */
function keepLikeliest(logits, count) {
  const least = logits.slice().sort()[logits.length - count];
  let numHigher = 0;
  for (let id = 0; id < logits.length; id++) numHigher += logits[id] > least;
  let numEqual = count - numHigher;
  for (let id = 0; id < logits.length; id++) {
    if (logits[id] < least || (logits[id] === least && numEqual-- <= 0)) logits[id] = -Infinity;
  }
}

/** Returns the id at which the running sum of probabilities exceeds a number in [0, 1). */
function drawId(probabilities, number) {
  let last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    if (probabilities[id] === 0) continue;
    last = id;
    number -= probabilities[id];
    if (number < 0) break;
  }
  return last;
}

/** Returns the likeliest ids, at most `count`, likeliest first, each with its probability. */
function findLikeliest(probabilities, count) {
  const best = [];
  for (let id = 0; id < probabilities.length; id++) {
    const probability = probabilities[id];
    if (probability === 0 || (best.length === count && probability <= best[count - 1].probability)) continue;
    let place = best.length;
    while (place > 0 && best[place - 1].probability < probability) place--;
    best.splice(place, 0, { id, probability });
    if (best.length > count) best.pop();
  }
  return best;
}

/** Decodes bytes that arrive one by one as UTF-8; those that are not valid are escaped, as in \xff. */
class ByteDecoder {
  constructor() {
    this.pending = [];
    this.decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  }

  /** Takes a drawn byte; returns the pieces of text that are complete, each with its bytes. */
  push(drawn) {
    this.pending.push(drawn);
    return this.takePieces(false);
  }

  /** Returns the bytes of a character that will not be completed. */
  finish() {
    return this.takePieces(true);
  }

  takePieces(isLast) {
    const pieces = [];
    while (this.pending.length) {
      const text = this.decodePending();
      if (text === null && !isLast && this.isUnfinished()) break;
      const drawn = text === null ? [this.pending.shift()] : this.pending.splice(0);
      pieces.push({ text: text === null ? escapeByte(drawn[0].symbol.charCodeAt(0)) : text, drawn });
    }
    return pieces;
  }

  getBytes() {
    return Uint8Array.from(this.pending, ({ symbol }) => symbol.charCodeAt(0));
  }

  /** Returns the text of the pending bytes, or null if they are not valid, or not yet complete. */
  decodePending() {
    try {
      return this.decoder.decode(this.getBytes());
    } catch {
      return null;
    }
  }

  /** Returns whether more bytes can make the pending ones a character. */
  isUnfinished() {
    const bytes = this.getBytes();
    const [first, second] = bytes;
    const length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || bytes.length >= length) return false;
    // the second byte rules out forms that are too long, surrogates and numbers beyond Unicode
    const lowest = { 0xe0: 0xa0, 0xf0: 0x90 }[first] || 0x80;
    const highest = { 0xed: 0x9f, 0xf4: 0x8f }[first] || 0xbf;
    if (bytes.length > 1 && (second < lowest || second > highest)) return false;
    return bytes.length < 3 || (bytes[2] >= 0x80 && bytes[2] <= 0xbf);
  }
}

/** Passes characters on as they are drawn. */
class CharacterDecoder {
  push(drawn) {
    return [{ text: drawn.symbol, drawn: [drawn] }];
  }

  finish() {
    return [];
  }
}

/**
 * A model that writes.
 *
 * A drawn symbol is { id, symbol, probability, likeliest }: the probability it was drawn with, and the likeliest
 * symbols for its place. A piece of text is { text, drawn }: what to show, and the symbols that make it up. The end of
 * a text is a piece of "".
 */
class Writer {
  constructor(description) {
    this.description = description;
    this.network = new Network(description);
    this.vocabulary = new Vocabulary(description);
  }

  /** Returns whether a text needs a beginning. */
  needsBeginning() {
    const { startId, windowSize, carriedSymbol } = this.description;
    return startId === null && !windowSize && carriedSymbol === null;
  }

  /** Starts a text as the layout demands; returns a reader that has read the ids of its beginning. */
  startText(ids) {
    const { startId, zeroStart, numSymbols, windowSize, carriedSymbol } = this.description;
    if (!ids.length && this.needsBeginning()) throw new InputProblem("This model needs a beginning to continue.");
    const continues = !ids.length && carriedSymbol !== null;
    const reader = windowSize
      ? new WindowReader(this.network, windowSize)
      : new StreamReader(this.network, continues ? this.network.makeCarriedState() : undefined);
    if (startId !== null) reader.read(zeroStart ? numSymbols : startId);
    if (continues) reader.read(carriedSymbol);
    for (const id of ids) reader.read(id);
    return reader;
  }

  /** Returns the probabilities of the symbol that a reader expects next; the next call overwrites them. */
  predict(reader, temperature = 1, topK = 0) {
    return computeProbabilities(reader.computeLogits(), temperature, topK, this.description.numUnpredicted);
  }

  /** Yields the drawn symbols of a text, the end of the text included. */
  *drawSymbols(reader, { length, temperature, topK }, random, numAlternatives) {
    for (let count = 0; count < length; count++) {
      const probabilities = this.predict(reader, temperature, topK);
      const id = drawId(probabilities, random());
      const likeliest = findLikeliest(probabilities, numAlternatives);
      yield { id, symbol: this.vocabulary.symbols[id], probability: probabilities[id], likeliest };
      if (id === this.vocabulary.endId) return;
      reader.read(id);
    }
  }

  /** Yields drawn symbols up to a stop string, holding back those that may be the start of it. */
  *cutAtStop(drawnSymbols, stop) {
    const stopSymbols = this.vocabulary.split(stop);
    const held = [];
    for (const drawn of drawnSymbols) {
      held.push(drawn);
      const isFull = stop !== "" && held.length === stopSymbols.length;
      if (isFull && held.every(({ symbol }, i) => symbol === stopSymbols[i])) return;
      if (held.length >= Math.max(stopSymbols.length, 1)) yield held.shift();
    }
    yield* held;
  }

  /** Yields the pieces of a text that continues a beginning. */
  *writeText(ids, settings, random, numAlternatives) {
    const decoder = this.vocabulary.ofBytes ? new ByteDecoder() : new CharacterDecoder();
    const drawnSymbols = this.drawSymbols(this.startText(ids), settings, random, numAlternatives);
    for (const drawn of this.cutAtStop(drawnSymbols, settings.stop)) {
      if (drawn.id !== this.vocabulary.endId) {
        yield* decoder.push(drawn);
      } else {
        yield* decoder.finish();
        yield { text: "", drawn: [drawn] };
      }
    }
    yield* decoder.finish();
  }

  /**
   * Yields the pieces of `count` texts that all continue one beginning; null separates two texts.
   *
   * `settings` has beginning, temperature, topK, length, stop, seed and count. One sequence of random numbers serves
   * all texts, one number a symbol.
   */
  *write(settings, numAlternatives = 6) {
    const ids = this.vocabulary.encode(settings.beginning), random = makeRandom(settings.seed);
    for (let index = 0; index < settings.count; index++) {
      if (index) yield null;
      yield* this.writeText(ids, settings, random, numAlternatives);
    }
  }

  /**
   * Returns the probabilities of all symbols at each place of a text, before reading what stands there.
   *
   * A text that the model cannot predict the first symbol of has null there.
   */
  computeTextProbabilities(text) {
    const ids = this.vocabulary.encode(text);
    const isFirstGiven = this.description.startId === null && !this.description.windowSize;
    const reader = this.startText(isFirstGiven ? ids.slice(0, 1) : []);
    return ids.map((id, index) => {
      if (index === 0 && isFirstGiven) return null;
      const probabilities = this.predict(reader).slice();
      reader.read(id);
      return probabilities;
    });
  }
}
