// The graph of one model: which heads, which positions, which ends, the picture, and what the searches found in words.

import { element, format, onFrame, onScheme, select, slider } from "page/dom";
import { drawGraph, layout } from "page/graphdrawing";
import { steps, strongestPath } from "page/paths";
import { EVERY_HEAD, litNodes, readStack, shares } from "page/stack";
import { headNames, leftOut, mixerName } from "page/words";

const WINDOW = 32; // positions in the picture
const NARROW = { width: 420, window: 16 }; // on a phone
const ENDS = { source: "input", target: "output" };

/** The panel of one model, as an element. */
export function graphPanel(page, model) {
  return new GraphPanel(page, model).element;
}

/** What is said of a search. */
function sayFewest(where, count) {
  if (count === null) return `${where}, no links lead there.`;
  if (count === 0) return `${where}, the residual alone leads there: 0 mixers.`;
  return `${where}, ${count === 1 ? "1 mixer" : `${count} mixers`} at the fewest.`;
}

class GraphPanel {
  constructor(page, model) {
    Object.assign(this, { page, model, choice: page.choice, mixers: page.data.models[model].mixers });
    Object.assign(this, { head: EVERY_HEAD, start: 0, stack: null, asked: 0, moving: "target" });
    this.redraw = onFrame(() => this.#draw());
    this.#build(page.data.models[model].name);
    this.#watch();
  }

  get text() {
    return this.choice.get("text");
  }

  get time() {
    return this.page.data.texts[this.text].tokens.length;
  }

  /** How many positions the picture shows. */
  get count() {
    const width = this.canvas.clientWidth;
    return Math.min(this.time, width && width < NARROW.width ? NARROW.window : WINDOW);
  }

  /** The mixer with the most heads. */
  get widest() {
    return this.mixers.reduce((most, mixer) => (mixer.heads > most.heads ? mixer : most));
  }

  /** The chosen input and output; the choice may come from a longer text. */
  get ends() {
    const [source, target] = ["source", "target"].map((key) => Math.min(this.choice.get(key), this.time - 1));
    return { source, target };
  }

  #build(name) {
    this.canvas = element("canvas", {
      class: "graph",
      tabindex: 0,
      role: "application",
      "aria-label": `Graph of the links of ${name}`,
      "aria-describedby": "graph-keys",
      onclick: (event) => this.#click(event),
      onkeydown: (event) => this.#key(event),
      onfocus: () => this.#sayMoving(),
      onblur: () => this.hint.replaceChildren(),
    });
    this.hint = element("p", { class: "note hint", "aria-live": "polite" });
    this.words = Object.fromEntries(
      ["whole", "seen", "strongest"].map((kind) => [kind, element("p", { class: `found ${kind}` })]),
    );
    this.fields = Object.fromEntries(Object.keys(ENDS).map((key) => [key, this.#field(key)]));
    this.windowChoice = element("span");
    this.element = element(
      "div",
      { class: "panel graph" },
      element("h3", { text: name }),
      element(
        "div",
        { class: "controls" },
        this.#headChoice(),
        element("label", { class: "control" }, element("span", { text: "From input" }), this.fields.source),
        element("label", { class: "control" }, element("span", { text: "to output" }), this.fields.target),
        this.windowChoice,
      ),
      this.widest.shown ? element("p", { class: "note", text: leftOut(this.widest).trim() }) : null,
      this.canvas,
      this.hint,
      element("div", { class: "sentence", role: "status" }, Object.values(this.words)),
    );
  }

  #field(key) {
    const input = element("input", { type: "number", min: 0, step: 1 });
    input.addEventListener("change", () => this.#choose(key, Number(input.value)));
    return input;
  }

  #headChoice() {
    const heads = headNames(this.widest).map((label, value) => ({ value, label }));
    const options = [{ value: EVERY_HEAD, label: "the strongest" }, ...heads];
    return select("Head", options, EVERY_HEAD, (head) => {
      this.head = head;
      this.#load();
    });
  }

  #watch() {
    new ResizeObserver(this.redraw).observe(this.canvas);
    onScheme(this.redraw);
    this.choice.watch(["text", "source", "target"], () => {
      for (const key of Object.keys(ENDS)) {
        this.fields[key].value = this.ends[key];
        this.fields[key].max = this.time - 1;
      }
    });
    // The layers are read when the picture is first seen.
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
      seen.disconnect();
      this.choice.watch(["text"], () => this.#load());
      this.choice.watch(["threshold"], () => this.#prune());
      this.choice.watch(["source", "target"], () => {
        this.#follow();
        this.#search();
      });
    });
    seen.observe(this.canvas);
  }

  async #load() {
    const request = (this.asked += 1);
    this.stack = null;
    this.words.whole.textContent = "Reading the layers …";
    const stack = await readStack(this.page, this.model, this.text, this.head);
    if (request !== this.asked) return;
    this.stack = stack;
    this.#follow();
    this.#prune();
  }

  #prune() {
    this.stack?.keep(this.choice.get("threshold"));
    this.#search();
  }

  #search() {
    this.redraw();
    if (!this.stack) return;
    const { source, target } = this.ends;
    const name = (position) => `“${this.page.token(this.text, position)}” at ${position}`;
    const fewest = sayFewest("In the whole text", this.stack.steps(source, target));
    this.words.whole.textContent = `From ${name(source)} to ${name(target)}. ${fewest}`;
    this.words.strongest.textContent = this.#sayStrongest(this.stack.strongestPath(source, target));
  }

  #sayStrongest(path) {
    if (!path) return "";
    if (!path.length) return "The strongest path in the whole text is the residual: weight 1.";
    const hops = path.map(
      ({ layer, source, target, weight }) =>
        `${mixerName(this.mixers[layer])}, ${source} → ${target} (${format(weight)})`,
    );
    const product = path.reduce((total, { weight }) => total * weight, 1);
    return `Strongest path in the whole text: ${hops.join("; ")}. Product of its weights: ${format(product)}.`;
  }

  #choose(key, value) {
    this.choice.set({ [key]: Math.min(this.time - 1, Math.max(0, Math.round(value) || 0)) });
  }

  /** Moves the window as little as it takes to show the output, and the input too where both fit. */
  #follow() {
    const { source, target } = this.ends;
    const wanted = Math.abs(target - source) < this.count ? [source, target] : [target];
    const start = Math.max(this.start, Math.max(...wanted) - this.count + 1);
    this.#move(Math.min(start, ...wanted));
  }

  #move(start) {
    this.start = Math.min(this.time - this.count, Math.max(0, start));
    this.windowChoice.firstChild?.show(this.start);
    this.redraw();
  }

  /** The slider of the window, made anew where the text or the room is another. */
  #offerWindow() {
    const last = this.time - this.count;
    if (last === this.last) return;
    this.last = last;
    this.start = Math.min(this.start, last);
    const range = { min: 0, max: last, step: 1, value: this.start };
    this.windowChoice.replaceChildren(
      ...(last ? [slider("First position in the picture", range, (start) => this.#move(start))] : []),
    );
  }

  #draw() {
    if (!this.stack || !this.canvas.clientWidth) return;
    this.#offerWindow();
    const place = layout(this.canvas.clientWidth, this.count, this.mixers.length);
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(place.width * density);
    this.canvas.height = Math.round(place.height * density);
    this.canvas.style.height = `${place.height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(density, density);
    drawGraph(context, place, this.#picture());
    this.place = place;
  }

  #picture() {
    const seen = this.stack.window(this.start, this.count);
    const [source, target] = [this.ends.source - this.start, this.ends.target - this.start];
    const isSeen = [source, target].every((at) => at >= 0 && at < seen.count);
    this.words.seen.textContent = isSeen
      ? sayFewest("Among the links in the picture", steps(seen.layers, seen.count, source, target))
      : "The picture does not show both ends: move its window.";
    return {
      count: seen.count,
      layers: shares(seen),
      names: this.mixers.map(({ layer, slot }) => `${slot === "mixer" ? "layer" : "ff"} ${layer + 1}`),
      tokens: Array.from({ length: seen.count }, (_, at) => this.page.token(this.text, this.start + at)),
      source,
      target,
      lit: isSeen ? litNodes(seen, source, target) : null,
      strongest: isSeen ? strongestPath(seen.layers, seen.count, source, target) : null,
    };
  }

  #click(event) {
    if (!this.place) return;
    const box = this.canvas.getBoundingClientRect();
    this.moving = this.place.isUpper(event.clientY - box.top) ? "target" : "source";
    this.#sayMoving();
    this.#choose(this.moving, this.start + this.place.position(event.clientX - box.left));
  }

  #key(event) {
    const at = this.ends[this.moving];
    const actions = {
      ArrowLeft: () => this.#choose(this.moving, at - 1),
      ArrowRight: () => this.#choose(this.moving, at + 1),
      Home: () => this.#choose(this.moving, 0),
      End: () => this.#choose(this.moving, this.time - 1),
      ArrowUp: () => this.#take("target"),
      ArrowDown: () => this.#take("source"),
    };
    if (!Object.hasOwn(actions, event.key) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  #take(end) {
    this.moving = end;
    this.#sayMoving();
  }

  #sayMoving() {
    this.hint.textContent = `The arrow keys left and right move the ${ENDS[this.moving]}.`;
  }
}
