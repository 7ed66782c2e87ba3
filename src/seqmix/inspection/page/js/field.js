/** The receptive field: by the formula, and as the share of the gradient that comes from each distance. */

import { lineChart } from "page/charts";
import { choices, element, select } from "page/dom";
import { AXES, count, folded, modelPanels, namedModels, note, table } from "page/parts";
import { mixerName } from "page/words";

export const id = "field";
export const title = "Receptive field";

const WHOLE = "whole";
const SHARES = ["50 %", "90 %", "99 %"];

export function mount(root, page) {
  root.append(
    note(
      "How far back an output sees. The formula counts the positions that links can reach; the effective receptive " +
        "field is the share of the gradient of an output that comes from each distance (0 is the position itself).",
    ),
  );
  const panels = modelPanels(page, (model) => (model.receptive_field ? fieldOf(model) : [nothing(model)]));
  root.append(panels, ...stepsOf(namedModels(page.data)));
}

const nothing = (model) => note(`The receptive field of ${model.name} was not measured.`);

/** The chart with its controls, the words, and the tables of one model. */
function fieldOf(model) {
  const field = model.receptive_field;
  let layer = WHOLE;
  let log = true;
  const words = element("p", { class: "field-words" });
  const chart = lineChart(chartOf(model, layer, log));
  const show = () => {
    chart.update(chartOf(model, layer, log));
    words.textContent = wordsOf(field, layer);
  };
  const layers = field.layers.map((entry, value) => ({ value, label: mixerName(entry) }));
  const options = [{ value: WHOLE, label: "whole model" }, ...layers];
  const controls = element("div", { class: "controls" });
  controls.append(
    select("Gradient of the output of", options, layer, (value) => {
      layer = value;
      show();
    }),
    choices("Axis of the distance", AXES, log, (value) => {
      log = value;
      show();
    }),
  );
  show();
  const directions = count(field.directions, "random direction");
  const source = note(`Mean over ${count(field.targets, "target")}; ${directions} of each output's gradient.`);
  return [controls, chart, words, source, layerTable(field), ...headFolds(field)];
}

function chartOf(model, layer, log) {
  const field = model.receptive_field;
  const shown = layer === WHOLE ? field : field.layers[layer];
  const distances = [...shown.curve.keys()];
  const weights = model.trained ? "trained weights" : "drawn weights";
  const series = [{ name: weights, x: distances, y: shown.curve }];
  const untrained = layer === WHOLE ? field.untrained : null;
  if (untrained) series.push({ name: "untrained weights", x: distances, y: untrained.curve });
  const { half, ninety, ninety_nine: most } = shown.widths;
  const marks = [[50, half], [90, ninety], [99, most]].map(([share, width]) => {
    return { x: width - 1, label: `${share} %: ${width}` };
  });
  const what = layer === WHOLE ? "whole model" : mixerName(shown);
  return {
    name: `Effective receptive field (${what}${untrained ? "" : `, ${weights}`})`,
    x: { label: "distance", unit: "positions back", log, zero: true, show: String },
    y: { label: "share of the gradient", log: true, decades: 8 },
    series,
    marks: marks.filter(({ x }) => x >= 0),
  };
}

/** The formula, the measurement and the widths in words. */
export function wordsOf(field, layer) {
  const time = field.curve.length;
  const shown = layer === WHOLE ? field : field.layers[layer];
  const formula = layer === WHOLE ? shown.formula : shown.stack_formula;
  const measured = layer === WHOLE ? shown.measured : shown.stack_measured;
  const sentences = [agreement(formula, measured, time), `${within("", shown.widths)}.`];
  if (layer === WHOLE) {
    const seen = field.positions_seen;
    if (formula !== null && seen !== null && seen < formula) {
      sentences.splice(1, 0, `Of these it sees ${seen}; the rest are holes.`);
    }
    if (field.untrained) sentences.push(`${within("With untrained weights, ", field.untrained.widths)}.`);
  }
  return sentences.join(" ");
}

function within(start, { half, ninety, ninety_nine: most }) {
  const verb = start ? "half" : "Half";
  const nearest = count(half, "position");
  return `${start}${verb} of the gradient comes from the nearest ${nearest}, 90 % from ${ninety}, 99 % from ${most}`;
}

/** Whether the formula and the measured span agree, or the text is too short to tell. */
export function agreement(formula, measured, time) {
  const positions = count(measured, "position");
  if (formula === null) {
    const reached = measured >= time ? `all ${time} positions of the text` : `${positions} of the text's ${time}`;
    return `The formula gives no bound; the gradient reaches ${reached}.`;
  }
  const given = `The formula gives ${count(formula, "position")}`;
  if (measured === formula) return `${given} and the gradient reaches as many: they agree.`;
  if (measured >= time && formula > time) return `${given}; the gradient fills the text of ${time}, too short to tell.`;
  return `${given}, but the gradient reaches ${measured}: they differ.`;
}

const bound = (formula) => (formula === null ? "no bound" : formula.toLocaleString("en"));
const three = ({ half, ninety, ninety_nine: most }) => [half, ninety, most].map((width) => width.toLocaleString("en"));

function layerTable(field) {
  const rows = field.layers.map((entry) => [
    mixerName(entry),
    bound(entry.formula),
    entry.measured.toLocaleString("en"),
    bound(entry.stack_formula),
    entry.stack_measured.toLocaleString("en"),
    ...three(entry.widths),
  ]);
  const spans = ["Alone: formula", "Alone: measured", "From the tokens: formula", "From the tokens: measured"];
  return table("Receptive field by layer, in positions", ["Output of", ...spans, ...SHARES], rows);
}

/** Heads that agree in everything, next to each other, are one row; `head` is the number of one among all of them. */
export function headRows(heads) {
  const rows = [];
  heads.forEach((head, place) => {
    const index = head.head ?? place;
    const cells = [bound(head.formula), head.measured.toLocaleString("en"), ...three(head.widths)];
    const last = rows.at(-1);
    if (last?.until === index - 1 && cells.every((cell, at) => cell === last.cells[at])) last.until = index;
    else rows.push({ from: index, until: index, cells });
  });
  const name = (from, until) => (from === until ? `head ${from + 1}` : `heads ${from + 1}–${until + 1}`);
  return rows.map(({ from, until, cells }) => [name(from, until), ...cells]);
}

/** One fold with a fold for each layer in it: a convolution has a head for each channel. */
function headFolds(field) {
  const several = field.layers.filter(({ heads }) => heads.length > 1);
  if (!several.length) return [];
  const layers = () =>
    several.map((entry) =>
      folded(`${mixerName(entry)}, ${count(entry.heads.length, "head")}`, () =>
        table(`Heads of ${mixerName(entry)}`, ["Alone", "Formula", "Measured", ...SHARES], headRows(entry.heads)),
      ),
    );
  return [folded("By head", () => element("div", { class: "inner" }, layers()))];
}

/** How many mixers a message needs, of all models in one chart, with the farthest distance in words. */
function stepsOf(models) {
  const known = models.filter(({ receptive_field: field }) => field?.steps);
  if (!known.length) return [];
  const series = known.map(({ name, receptive_field: { steps } }) => ({ name, x: steps.distances, y: steps.mixers }));
  const chart = lineChart({
    name: "Mixers that a message needs",
    x: { label: "distance", unit: "positions back", log: true, base: 2, show: String },
    y: { label: "mixers", zero: true, whole: true, show: String },
    series,
    height: 160,
  });
  return [chart, ...known.map((model) => note(stepsInWords(model)))];
}

export function stepsInWords({ name, receptive_field: { steps } }) {
  const reached = steps.mixers.findLastIndex((mixers) => mixers !== null);
  if (reached < 0) return `${name}: no message crosses even one position.`;
  const end = reached + 1 === steps.mixers.length ? "" : "; farther ones it cannot bring";
  const needed = count(steps.mixers[reached], "mixer");
  return `${name}: a message from ${count(steps.distances[reached], "position")} back needs ${needed}${end}.`;
}
