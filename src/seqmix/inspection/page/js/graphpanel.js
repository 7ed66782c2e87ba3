// The graph of one model: which heads, which positions, which ends, the picture, and what the searches found in words.

import { element, format, onFrame, onScheme, select, slider } from "page/dom";
import { drawGraph, layout } from "page/graphdrawing";
import * as paths from "page/paths";
import { mixerName } from "page/words";

const WINDOW = 32; // positions in the picture
const NARROW = { width: 420, window: 16 }; // on a phone
const EVERY_HEAD = -1;

const mixers = (count) => (count === 1 ? "1 mixer" : `${count} mixers`);

/** The layers as weights of links; the largest over the heads, or one head where a layer has it. */
async function loadLayers(page, model, text, head) {
  const layers = [];
  for (const mixer of page.data.models[model].mixers) {
    const block = await page.block(mixer.blocks[text]);
    const all = [...Array(block.heads).keys()];
    layers.push(paths.strongestHead(block, all.includes(head) ? [head] : all));
    await new Promise((resume) => setTimeout(resume)); // the page stays alive between layers
  }
  return layers;
}

/** What is said of the search over the whole text or over the picture. */
function sayFewest(where, count) {
  if (count === null) return `${where}, no links lead there.`;
  return count === 0 ? `${where}, the residual alone leads there: 0 mixers.` : `${where}, ${mixers(count)} at the fewest.`;
}

function sayStrongest(page, model, path) {
  if (!path) return "";
  if (!path.length) return "The strongest path in the whole text is the residual: weight 1.";
  const product = path.reduce((total, { weight }) => total * weight, 1);
  const hops = path.map(
    ({ layer, source, target, weight }) =>
      `${mixerName(page.data.models[model].mixers[layer])}, ${source} → ${target} (${format(weight)})`,
  );
  return `Strongest path in the whole text: ${hops.join("; ")}. Product of its weights: ${format(product)}.`;
}

/** The panel of one model. */
export function graphPanel(page, model) {
  const { choice, data } = page;
  const { name, mixers: all } = data.models[model];
  const state = { head: EVERY_HEAD, start: 0, layers: null, largest: null, kept: null, asked: 0, end: "target" };
  const text = () => choice.get("text");
  const time = () => data.texts[text()].tokens.length;
  const inside = (position) => Math.min(position, time() - 1); // the choice may come from a longer text
  const ends = () => ({ source: inside(choice.get("source")), target: inside(choice.get("target")) });

  const canvas = element("canvas", { class: "graph", tabindex: "0", role: "application", "aria-describedby": "graph-keys" });
  canvas.setAttribute("aria-label", `Graph of the links of ${name}`);
  const words = ["whole", "seen", "strongest"].map((kind) => element("p", { class: `found ${kind}` }));
  const found = element("div", { class: "sentence", role: "status" }, ...words);
  const position = (label, key) => {
    const input = element("input", { type: "number", min: "0", step: "1" });
    input.addEventListener("change", () => choose(key, Number(input.value)));
    return { input, label: element("label", { class: "control" }, element("span", { text: label }), input) };
  };
  const fields = { source: position("From input", "source"), target: position("to output", "target") };
  const windowChoice = element("span", {});

  const choose = (key, value) => {
    const at = Math.min(time() - 1, Math.max(0, Math.round(value) || 0));
    choice.set({ [key]: at });
  };
  /** Moves the window as little as it takes to show the output, and the input too where both fit. */
  const follow = () => {
    const { source, target } = ends();
    const size = count();
    const wanted = Math.abs(target - source) < size ? [source, target] : [target];
    const start = Math.max(state.start, Math.max(...wanted) - size + 1);
    move(Math.min(start, ...wanted));
  };
  const count = () => Math.min(time(), canvas.clientWidth && canvas.clientWidth < NARROW.width ? NARROW.window : WINDOW);
  const move = (start) => {
    state.start = Math.min(time() - count(), Math.max(0, start));
    windowChoice.firstChild?.show(state.start);
    redraw();
  };

  /** Keeps the strong links; the weights of the picture are relative to the largest of their row. */
  const prune = () => {
    if (!state.layers) return;
    const length = time();
    const threshold = choice.get("threshold");
    state.kept = state.layers.map((weights, at) => paths.keepStrong(weights, length, threshold, state.largest[at]));
    search();
  };
  const search = () => {
    if (!state.kept) return;
    const { source, target } = ends();
    const length = time();
    words[0].textContent =
      `From “${page.token(text(), source)}” at ${source} to “${page.token(text(), target)}” at ${target}. ` +
      sayFewest("In the whole text", paths.steps(state.kept, length, source, target));
    words[2].textContent = sayStrongest(page, model, paths.strongestPath(state.kept, length, source, target));
    redraw();
  };

  const picture = () => {
    const [size, length, start] = [count(), time(), state.start];
    const layers = state.kept.map((weights) => paths.windowOf(weights, length, start, size));
    const relative = layers.map((weights, layer) =>
      weights.map((weight, at) => weight / state.largest[layer][start + Math.floor(at / size)] || 0),
    );
    const { source, target } = ends();
    const [from, to] = [source - start, target - start];
    const isSeen = [from, to].every((at) => at >= 0 && at < size);
    let lit = null;
    if (isSeen && paths.steps(layers, size, from, to) !== null) {
      const [after, before] = [paths.reached(layers, size, from), paths.leading(layers, size, to)];
      lit = after.map((nodes, level) => nodes.map((node, at) => node & before[level][at]));
    }
    words[1].textContent = isSeen
      ? sayFewest("Among the links in the picture", paths.steps(layers, size, from, to))
      : "The picture does not show both ends: move its window.";
    const path = isSeen ? paths.strongestPath(layers, size, from, to) : null;
    const tokens = Array.from({ length: size }, (_, at) => page.token(text(), start + at));
    const names = all.map(({ layer, slot }) => `${slot === "mixer" ? "layer" : "ff"} ${layer + 1}`);
    return { count: size, layers: relative, names, tokens, source: from, target: to, lit, strongest: path };
  };
  const draw = () => {
    if (!state.kept || !canvas.clientWidth) return;
    const place = layout(canvas.clientWidth, count(), all.length);
    const density = window.devicePixelRatio || 1;
    canvas.width = Math.round(place.width * density);
    canvas.height = Math.round(place.height * density);
    canvas.style.height = `${place.height}px`;
    const context = canvas.getContext("2d");
    context.scale(density, density);
    drawGraph(context, place, picture());
    state.place = place;
  };
  const redraw = onFrame(draw);

  const load = async () => {
    const request = (state.asked += 1);
    words[0].textContent = "Reading the layers …";
    const layers = await loadLayers(page, model, text(), state.head);
    if (request !== state.asked) return;
    state.layers = layers;
    state.largest = layers.map((weights) => paths.rowLargest(weights, time()));
    prune();
  };

  canvas.addEventListener("click", (event) => {
    if (!state.place) return;
    const box = canvas.getBoundingClientRect();
    const key = state.place.isUpper(event.clientY - box.top) ? "target" : "source";
    state.end = key;
    choose(key, state.start + state.place.position(event.clientX - box.left));
  });
  canvas.addEventListener("keydown", (event) => {
    const at = ends()[state.end];
    const actions = {
      ArrowLeft: () => choose(state.end, at - 1),
      ArrowRight: () => choose(state.end, at + 1),
      Home: () => choose(state.end, 0),
      End: () => choose(state.end, time() - 1),
      ArrowUp: () => (state.end = "target"),
      ArrowDown: () => (state.end = "source"),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  });
  new ResizeObserver(redraw).observe(canvas);
  onScheme(redraw);

  const most = Math.max(...all.map(({ heads, shown }) => shown?.length ?? heads));
  const heads = Array.from({ length: most }, (_, value) => ({ value, label: `number ${value + 1}` }));
  const headChoice = select("Head", [{ value: EVERY_HEAD, label: "the strongest" }, ...heads], EVERY_HEAD, (head) => {
    state.head = head;
    load();
  });
  const opened = new IntersectionObserver((entries) => {
    if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
    opened.disconnect();
    choice.watch(["text"], load);
    choice.watch(["threshold"], prune);
    choice.watch(["source", "target"], () => {
      follow();
      search();
    });
  });
  opened.observe(canvas);
  choice.watch(["source", "target", "text"], () => {
    for (const [key, { input }] of Object.entries(fields)) {
      input.value = String(ends()[key]);
      input.max = String(time() - 1);
    }
  });
  choice.watch(["text"], () => {
    const last = Math.max(0, time() - WINDOW);
    state.kept = null;
    state.start = Math.min(state.start, last);
    const range = { min: 0, max: last, step: 1, value: state.start };
    windowChoice.replaceChildren(...(last ? [slider("First position in the picture", range, move)] : []));
  });

  const controls = element(
    "div", { class: "controls" }, headChoice, fields.source.label, fields.target.label, windowChoice,
  );
  return element("div", { class: "panel graph" }, element("h3", {}, name), controls, canvas, found);
}
