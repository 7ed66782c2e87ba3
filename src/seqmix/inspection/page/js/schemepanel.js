// One scheme of the playground: its fields, what follows from them in numbers, and its pictures.

import { choices, element, onFrame, onScheme, select } from "page/dom";
import { drawGraph, drawMatrix, drawReached } from "page/drawings";
import { countInWords, fieldFormula, neededInWords, number, plural, reachedInWords } from "page/formulas";
import { knob, textField } from "page/knobs";
import { SCHEMES } from "page/presets";
import {
  AT_ALL, AT_ONCE, cone, counted, fewestLayers, holdsField, lagSetWork, linkList, pathLength, stackLinks, stackSeen,
} from "page/reach";
import { hintsOf, isCausal, KINDS, layersNeeded, NUMBERS, readList, stackOf } from "page/rules";
import { libraryOptions, seesEverything } from "page/schemes";

const FACTS = {
  field: "Receptive field",
  counted: "Counted from the drawn links",
  seen: "Positions really seen",
  needed: "Layers until the first token reaches the last",
  path: "Path length in this stack, from the first token to the last",
  library: "In the library, first layer",
};
const WAIT = 150;

const MIXERS = {
  depthwise_conv: "depthwise", gated_conv: "gated", conv: "full (all channels)", bytenet: "ByteNet's block",
  gated_global_conv: "gated", global_conv: "plain",
};

/** A figure with a canvas that is a named picture. */
function picture(caption, kind) {
  const canvas = element("canvas", { role: "img", class: kind }), words = element("p", { class: "note" });
  const title = element("figcaption", { text: caption });
  const root = element("figure", { class: "plot" }, title, element("div", {}, canvas), words);
  const say = (text) => {
    words.textContent = text;
    canvas.setAttribute("aria-label", `${caption}. ${text}`);
  };
  return { root, canvas, say };
}

/**
 * The panel of a scheme.
 * @param {{shared: function(): {width: number, length: number, drawn: number}, scheme: object,
 *   change: function(object): void, choose: function(string): void, title: string}} board
 *   `scheme` is {name, settings}; `change` takes new settings, `choose` the name of a preset.
 * @returns {{root: HTMLElement, refresh: function(): void, update: function(object): void}}
 */
export function schemePanel(board) {
  let { scheme } = board;
  let target = null, layer = 0, hit = null, waiting = 0;
  const edit = (changes) => board.change({ ...scheme.settings, ...changes });
  const redraw = onFrame(() => refresh());

  const presets = Object.entries(SCHEMES).map(([value, { label }]) => ({ value, label }));
  presets.push({ value: null, label: "A scheme of your own" });
  const preset = select(board.title, presets, null, (name) => name && board.choose(name));
  const kind = select("Links", Object.entries(KINDS).map(([value, { label }]) => ({ value, label })), "convolution",
    (value) => edit({ kind: value, mixer: KINDS[value].mixers[0] }));
  const directions = [{ value: true, label: "causal" }, { value: false, label: "both ways" }];
  const ways = choices("Direction", directions, true, (causal) => {
    target = null;
    edit({ causal });
  });
  const mixer = element("div", { class: "mixer" });
  const knobs = Object.fromEntries(Object.entries(NUMBERS).map(([key, range]) =>
    [key, knob(range.label, range, (value) => edit({ [key]: value }))]));
  const list = textField("Dilations by layer", "1, 2, 4", (text) => edit({ list: text }));
  const hint = element("p", { class: "note", role: "status" });
  const values = Object.fromEntries(Object.keys(FACTS).map((key) => [key, element("dd", { "data-fact": key })]));
  values.field.setAttribute("aria-live", "polite");
  const facts = element("dl", { class: "facts" },
    Object.entries(FACTS).flatMap(([key, label]) => [element("dt", { text: label }), values[key]]));

  const graph = picture("Links from layer to layer, the input below", "stack");
  const reached = picture("Inputs that reach the output", "strip");
  const matrix = picture("Links of one layer", "cells");
  const output = position("Output", "Output whose cone is lit", 0, (value) => {
    target = value;
    redraw();
  });
  const layerShown = position("Layer", "Layer of the matrix", 1, (value) => {
    layer = value - 1;
    redraw();
  });
  graph.canvas.addEventListener("click", (event) => {
    target = hit(event.clientX - graph.canvas.getBoundingClientRect().left);
    redraw();
  });
  const root = element("div", { class: "panel scheme", role: "region", "aria-label": board.title },
    element("div", { class: "controls" }, preset, kind, mixer, ways),
    element("div", { class: "knobs" }, Object.values(knobs), list),
    hint, facts, output.root, graph.root, reached.root, layerShown.root, matrix.root);
  onScheme(redraw);
  let drawnWidth = 0;
  new ResizeObserver(([entry]) => {
    if (Math.round(entry.contentRect.width) === drawnWidth) return;
    drawnWidth = Math.round(entry.contentRect.width);
    redraw();
  }).observe(graph.root);

  function showFields() {
    const { settings, name } = scheme, { fields: used, mixers, twoWays } = KINDS[settings.kind];
    preset.show(name);
    kind.show(settings.kind);
    ways.show(settings.causal);
    ways.hidden = !twoWays;
    list.hidden = !used.includes("list");
    list.show(settings.list);
    list.mark(settings.list.trim() === "" || readList(settings.list).length > 0);
    const named = mixers.map((value) => ({ value, label: MIXERS[value] ?? value }));
    const chooser = () => select("Mixer", named, settings.mixer, (value) => edit({ mixer: value }));
    mixer.replaceChildren(...(mixers.length > 1 ? [chooser()] : []));
    for (const [key, control] of Object.entries(knobs)) {
      const byList = ["dilation", "growth", "again"].includes(key) && readList(settings.list).length > 0;
      control.hidden = key !== "layers" && (!used.includes(key) || byList);
      control.show(settings[key]);
    }
  }

  function sayFacts(stack, drawn, count, isWhole, matrices) {
    const { settings } = scheme, { width, length } = board.shared(), formula = fieldFormula(settings, stack.layers);
    const { value } = formula;
    const sees = stack.layers.some(seesEverything);
    values.field.replaceChildren(value === null
      ? element("strong", { text: sees ? "every earlier position" : "no bound" })
      : element("strong", { text: number(value) }),
      value === null ? "" : ` = ${formula.symbols} = ${formula.numbers}`);
    const hasBlocks = settings.kind === "sparse" && settings.block > 1;
    const words = countInWords(count, value, isWhole, drawn, hasBlocks);
    values.counted.textContent = words.text;
    values.counted.dataset.agrees = String(words.agrees);
    values.needed.textContent = neededInWords(layersNeeded(settings, width, length), length);
    values.path.textContent = pathInWords(stack, length, matrices);
    values.library.replaceChildren(element("code", { text: JSON.stringify(libraryOptions(stack.layers[0])) }));
    saySeen(stack, value, sees, count, drawn, length);
  }

  function saySeen(stack, field, sees, count, drawn, length) {
    clearTimeout(waiting);
    const say = (seen) => {
      const rest = seen < field ? ": the others are skipped" : "";
      values.seen.textContent = seen === null ? "too many to count" : `${number(seen)} of ${number(field)}${rest}`;
    };
    if (field === null) {
      const some = `${number(count.seen)} of the ${number(drawn)} drawn, by this output`;
      values.seen.textContent = sees ? `all ${number(length)}` : some;
      return;
    }
    const work = lagSetWork(stack);
    if (work <= AT_ONCE) say(stackSeen(stack));
    else if (work > AT_ALL) say(null);
    else {
      values.seen.textContent = "being counted …";
      waiting = setTimeout(() => say(stackSeen(stack)), WAIT);
    }
  }

  function refresh() {
    const began = performance.now();
    const { settings } = scheme, { width, length, drawn: most } = board.shared(), drawn = Math.min(most, length);
    const stack = stackOf(settings, width), matrices = stackLinks(stack.layers, drawn);
    const outputs = matrices[matrices.length - 1].targets, usual = isCausal(settings) ? outputs - 1 : outputs >> 1;
    const at = target === null || target >= outputs ? usual : target;
    layer = Math.min(layer, stack.layers.length - 1);
    const levels = cone(matrices, at, stack.residual), count = counted(levels[0]);
    hint.textContent = hintsOf(settings, width);
    sayFacts(stack, drawn, count, holdsField(stack, drawn, at), matrices);
    sayPictures(stack, matrices, levels, count, at);
    performance.clearMeasures("playground");
    performance.measure("playground", { start: began });
  }

  function sayPictures(stack, matrices, levels, count, at) {
    const drawn = levels[0].length, how = drawGraph(graph.canvas, stack, matrices, levels);
    hit = how.positionAt;
    const sizes = `${plural(drawn, "position")}, ${plural(stack.layers.length, "layer")}`;
    graph.say([
      `${sizes}: output ${at} is reached by ${number(count.seen)} of the inputs.`,
      ...(how.isShaded ? ["Links of the cone are shaded, being too many to draw."] : []),
      ...(how.hides ? ["Only the cone is drawn."] : []),
    ].join(" "));
    const { residual } = stack;
    const fewest = residual ? fewestLayers(matrices, at) : Int32Array.from(levels[0], (mark) => (mark ? 1 : -1));
    drawReached(reached.canvas, fewest);
    reached.say(residual ? reachedInWords(fewest) : `${number(count.seen)} inputs reach it through all layers.`);
    const { targets, sources } = matrices[layer], links = linkList(matrices[layer]).sources.length;
    drawMatrix(matrix.canvas, matrices[layer], Math.min(at, targets - 1));
    const among = `${number(targets)} targets (downwards) and ${number(sources)} sources`;
    matrix.say(`Layer ${layer + 1}: ${plural(links, "link")} among ${among}; the output's row is lit.`);
    output.show(levels[levels.length - 1].length - 1, at, `position ${at}`);
    layerShown.show(stack.layers.length, layer + 1, `${layer + 1} of ${stack.layers.length}`);
  }

  function update(next) {
    if (next.settings.kind !== scheme.settings.kind || next.name !== scheme.name) target = null;
    scheme = next;
    showFields();
    redraw();
  }

  showFields();
  return { root, refresh, update, redraw };
}

/** A slider over positions or layers, whose greatest value changes. */
function position(label, name, min, onInput) {
  const oninput = () => onInput(Number(input.value));
  const input = element("input", { type: "range", min, step: 1, "aria-label": name, oninput });
  const read = element("span", { class: "read" });
  const show = (max, value, text) => {
    input.max = max;
    input.value = value;
    input.setAttribute("aria-valuetext", text);
    read.textContent = text;
  };
  return { root: element("label", { class: "control" }, element("span", { text: label }), input, read), show };
}

/** The fewest mixers of the stack from the first token to the last: by formula, or counted on the drawn links. */
function pathInWords(stack, length, matrices) {
  if (!stack.residual) return "all layers, where the field holds both";
  const isDrawnOnly = ({ pattern }) => pattern && (pattern.global > 0 || pattern.random);
  if (!stack.layers.some(isDrawnOnly)) {
    const path = pathLength(stack.layers, length - 1);
    if (path === null) return `none: the stack does not span ${number(length)} tokens`;
    return `${plural(path, "layer")}${stack.layers.some(seesEverything) ? "" : ", by their spans"}`;
  }
  const drawn = matrices[0].sources, path = fewestLayers(matrices, drawn - 1)[0];
  return path < 0 ? `none over the ${number(drawn)} drawn` : `${plural(path, "layer")} over the ${number(drawn)} drawn`;
}
