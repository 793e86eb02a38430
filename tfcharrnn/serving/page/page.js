// The page: settings, the text as it is written, and a look at the alternatives to each of its characters.
//
// Whatever comes from the model or the run is shown by textContent, so that it is never read as HTML.

// how long to write before the page may react, in milliseconds
const SLICE_MS = 25;

const find = (id) => document.getElementById(id);
const formatPercent = (fraction) => `${(100 * fraction).toFixed(fraction < 0.0995 ? 1 : 0)} %`;

/** Returns a new element with a text and a class. */
function makeElement(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

/** Light or dark: what the system prefers, until the reader chooses. */
class Theme {
  constructor() {
    this.preference = matchMedia("(prefers-color-scheme: dark)");
    this.chosen = this.recall();
    this.preference.addEventListener("change", () => this.apply());
    this.apply();
  }

  isDark() {
    return this.chosen ? this.chosen === "dark" : this.preference.matches;
  }

  toggle() {
    this.chosen = this.isDark() ? "light" : "dark";
    this.apply();
    try {
      localStorage.setItem("tfcharrnn-theme", this.chosen);
    } catch {
      // some browsers keep nothing for a page from disk
    }
  }

  recall() {
    try {
      return localStorage.getItem("tfcharrnn-theme");
    } catch {
      return null;
    }
  }

  apply() {
    document.documentElement.dataset.theme = this.isDark() ? "dark" : "light";
    find("theme")?.setAttribute("aria-pressed", String(this.isDark()));  // there is no button yet at first
  }
}

/**
 * The text on the page, and the drawn symbols that it consists of.
 *
 * Each piece is a span. The bytes of a character share one.
 */
class TextView {
  constructor(element) {
    this.element = element;
    this.clear("");
  }

  /** Starts a text with its beginning, which the reader has given. */
  clear(beginning) {
    this.beginning = beginning;
    this.drawn = [];  // drawn symbols
    this.spans = [];  // their spans
    this.element.textContent = "";
    this.appendBeginning(this.element);
  }

  appendBeginning(parent) {
    if (this.beginning) parent.append(makeElement("b", this.beginning));
  }

  /** Appends pieces of text; null begins another text. */
  append(pieces) {
    const fragment = document.createDocumentFragment();
    for (const piece of pieces) {
      if (piece === null) {
        fragment.append(makeElement("hr", ""));
        this.appendBeginning(fragment);
      } else {
        fragment.append(this.makeSpan(piece));
      }
    }
    this.element.append(fragment);
  }

  makeSpan({ text, drawn }) {
    const isEnd = text === "";
    const span = makeElement("span", isEnd ? " ∎" : text, isEnd ? "end" : "");
    if (isEnd) span.setAttribute("aria-hidden", "true");
    span.dataset.index = this.drawn.length;
    for (const symbol of drawn) {
      this.drawn.push(symbol);
      this.spans.push(span);
    }
    return span;
  }

  /** Returns the index of the first symbol of the span that an event is about, or null. */
  findIndex(event) {
    const span = event.target.closest("span[data-index]");
    return span && this.element.contains(span) ? Number(span.dataset.index) : null;
  }

  /** Marks the span of a symbol. */
  mark(index) {
    this.element.querySelector(".here")?.classList.remove("here");
    this.spans[index]?.classList.add("here");
  }
}

/** The alternatives to one drawn symbol, as a table, and a slider that moves from symbol to symbol. */
class AlternativesView {
  constructor(textView, vocabulary) {
    this.textView = textView;
    this.vocabulary = vocabulary;
    this.slider = find("look");
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value) - 1));
    this.slider.addEventListener("focus", () => this.show(Number(this.slider.value) - 1));
    for (const type of ["pointerover", "click"]) {
      textView.element.addEventListener(type, (event) => this.showAt(event));
    }
    this.update();
  }

  /** Adapts the slider to the length of the text. */
  update() {
    const count = this.textView.drawn.length;
    find("panel").classList.toggle("empty", count === 0);
    this.slider.disabled = count === 0;
    this.slider.max = Math.max(count, 1);
  }

  showAt(event) {
    const index = this.textView.findIndex(event);
    if (index === null) return;
    this.slider.value = index + 1;
    this.show(index);
  }

  /** Shows a symbol of the text, by its index. */
  show(index) {
    const drawn = this.textView.drawn[index];
    if (!drawn) return;
    this.textView.mark(index);
    const shown = `${this.vocabulary.nameId(drawn.id)}, ${formatPercent(drawn.probability)}`;
    find("place").textContent = `Symbol ${index + 1} of ${this.textView.drawn.length}: ${shown}`;
    const isListed = drawn.likeliest.some(({ id }) => id === drawn.id);
    const rows = isListed ? drawn.likeliest : [...drawn.likeliest.slice(0, -1), drawn];
    find("alternatives").replaceChildren(...rows.map((row) => this.makeRow(row, row.id === drawn.id)));
    const others = rows.filter(({ id }) => id !== drawn.id);
    const spoken = others.map(({ id, probability }) => `${this.vocabulary.nameId(id)} ${formatPercent(probability)}`);
    this.slider.setAttribute("aria-valuetext", `${shown}${spoken.length ? `; others: ${spoken.join(", ")}` : ""}`);
  }

  makeRow({ id, probability }, isDrawn) {
    const row = makeElement("tr", "", isDrawn ? "drawn" : "");
    const name = makeElement("th", this.vocabulary.nameId(id) + (isDrawn ? " ✓" : ""));
    name.scope = "row";
    const bar = makeElement("i", "");
    bar.style.width = `${100 * probability}%`;
    const cell = document.createElement("td");
    cell.append(bar);
    row.append(name, makeElement("td", formatPercent(probability), "number"), cell);
    return row;
  }
}

/** Writes in slices, between which the browser shows the text and hears the reader. */
class WritingTask {
  constructor(pieces, textView, onSlice, onEnd) {
    Object.assign(this, { pieces, textView, onSlice, onEnd });
    this.isStopped = false;
    this.seconds = 0;
    setTimeout(() => this.runSlice());
  }

  stop() {
    this.isStopped = true;
  }

  runSlice() {
    if (this.isStopped) return;
    const start = performance.now(), written = [];
    let next = this.pieces.next();
    while (!next.done) {
      written.push(next.value);
      if (performance.now() - start > SLICE_MS) break;
      next = this.pieces.next();
    }
    this.seconds += (performance.now() - start) / 1000;
    this.textView.append(written);
    this.onSlice();
    if (next.done) this.onEnd();
    else setTimeout(() => this.runSlice());
  }
}

/** The form: reads the settings, starts and stops. */
class Page {
  constructor(description) {
    this.writer = new Writer(description);
    this.textView = new TextView(find("text"));
    this.alternatives = new AlternativesView(this.textView, this.writer.vocabulary);
    this.task = null;
    this.describeModel(description);
    find("settings").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    find("stop-writing").addEventListener("click", () => this.stop());
    find("next-seed").addEventListener("click", () => this.startNextSeed());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.task) this.stop();
      const isSubmit = event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.id === "beginning";
      if (isSubmit) find("settings").requestSubmit();
    });
    find("write").disabled = find("next-seed").disabled = false;
    this.showStatus("Ready.");
  }

  describeModel({ name, summary, endId }) {
    find("name").textContent = name;
    for (const [term, value] of summary) {
      const entry = document.createElement("div");
      entry.append(makeElement("dt", term), makeElement("dd", value));
      find("summary").append(entry);
    }
    // only models of lines end their texts by themselves, and so can write several
    find("count-field").hidden = endId === null;
    if (endId === null) find("count").value = 1;
    find("beginning").required = this.writer.needsBeginning();
  }

  /** Writes at once, for an address that ends in `#write=` and the beginning of the text. */
  followAddress() {
    const beginning = new URLSearchParams(location.hash.slice(1)).get("write");
    if (beginning === null) return;
    find("beginning").value = beginning;
    find("settings").requestSubmit();
  }

  readSettings() {
    const read = (id) => Number(find(id).value);
    return {
      beginning: find("beginning").value, stop: find("stop").value, temperature: read("temperature"),
      topK: read("top-k"), length: read("length"), seed: read("seed"), count: read("count"),
    };
  }

  start() {
    this.stop();
    this.showProblem("");
    const settings = this.readSettings();
    this.textView.clear("");
    this.alternatives.update();
    try {
      this.writer.vocabulary.encode(settings.beginning);
    } catch (problem) {
      if (!(problem instanceof InputProblem)) throw problem;
      this.showProblem(problem.message);
      return;
    }
    this.textView.clear(settings.beginning);
    this.showStatus("Writing…");
    find("stop-writing").disabled = false;
    this.task = new WritingTask(
      this.writer.write(settings), this.textView, () => this.alternatives.update(), () => this.finish("Done"),
    );
  }

  startNextSeed() {
    const seed = find("seed");
    if (seed.checkValidity()) seed.value = (Number(seed.value) + 1) % (Number(seed.max) + 1);
    find("settings").requestSubmit();
  }

  stop() {
    if (!this.task) return;
    this.task.stop();
    this.finish("Stopped");
  }

  finish(what) {
    const count = this.textView.drawn.length, { seconds } = this.task;
    const speed = seconds > 0 ? ` (${Math.round(count / seconds).toLocaleString("en")} a second)` : "";
    const unit = this.writer.vocabulary.ofBytes ? "bytes" : "characters";
    this.showStatus(`${what}: ${count.toLocaleString("en")} ${unit}${speed}.`);
    this.task = null;
    const button = find("stop-writing");
    // a button that is disabled loses the focus, and a keyboard would start at the top of the page again
    if (document.activeElement === button) find("write").focus();
    button.disabled = true;
  }

  showStatus(message) {
    find("status").textContent = message;
  }

  showProblem(message) {
    find("problem").textContent = message;
    find("beginning").setAttribute("aria-invalid", String(message !== ""));
    if (message) this.showStatus("");
  }
}

/** Starts the page, and offers the model to scripts as `window.tfcharrnn`. */
function startPage(theme) {
  theme.apply();
  find("theme").addEventListener("click", () => theme.toggle());
  const page = new Page(JSON.parse(find("model").textContent));
  const { writer } = page;
  window.tfcharrnn = {
    /** Returns the probabilities of all symbols at each place of a text: a list of lists, or null. */
    probabilities: (text) => writer.computeTextProbabilities(text).map((row) => row && Array.from(row)),
    /** Returns the pieces of text that the settings of `Writer.write` lead to; those left out have defaults. */
    write: (settings = {}) => {
      const defaults = { beginning: "", stop: "", temperature: 1, topK: 0, length: 1000, seed: 0, count: 1 };
      return Array.from(writer.write({ ...defaults, ...settings }));
    },
  };
  page.followAddress();
}

// the theme applies before anything is shown, so that a dark page does not begin with a flash
const pageTheme = new Theme();
document.addEventListener("DOMContentLoaded", () => startPage(pageTheme));
