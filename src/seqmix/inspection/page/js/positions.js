/** Positions: encodings as phases over distance, and what the division by the square root of d does to the scores. */

import { lineChart } from "page/charts";
import { choices, element, format } from "page/dom";
import { AXES, modelPanels, note, table } from "page/parts";

export const id = "positions";
export const title = "Positions";

const KINDS = {
  rope: { name: "Rotary positions (RoPE)", label: "cosine of the turn" },
  alibi: { name: "ALiBi", label: "added to the score", unit: "nats" },
  sinusoidal: { name: "Sinusoidal positions", label: "cosine of two positions" },
  learned: { name: "Learned positions", label: "cosine of two positions" },
};
const FIRST_SHOWN = 4;

export function mount(root, page) {
  root.append(modelPanels(page, (model) => panelOf(model)));
}

function panelOf({ positions }) {
  if (!positions) return [note("The positions of this model were not looked at.")];
  const encoding = positions.kind === "none" ? [note(noneOf(positions))] : encodingOf(positions);
  const scores = positions.scores ? scoresOf(positions.scores) : [note("This model has no softmax scores.")];
  return [...encoding, ...scores];
}

const noneOf = ({ note: words }) => words || "This model has no position encoding.";

/** The curves, with a box to tick for each: at first a few from the fastest to the slowest. */
function encodingOf(positions) {
  const { curves, distances, kind } = positions;
  const chosen = new Set(spread(curves.length));
  const series = () => [...chosen].sort((a, b) => a - b).map((at) => {
    return { name: curves[at].name, x: distances, y: curves[at].values };
  });
  const { name, label, unit } = KINDS[kind];
  const across = (log) => ({ label: "distance", unit: "positions", log, zero: true, show: String });
  const chart = lineChart({ name, x: across(true), y: { label, unit }, series: series() });
  const axis = choices("Axis of the distance", AXES, true, (log) => chart.update({ x: across(log) }));
  const boxes = curves.map((curve, at) => {
    const box = element("input", { type: "checkbox" });
    box.checked = chosen.has(at);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(at);
      else chosen.delete(at);
      chart.update({ series: series() });
    });
    return element("label", { class: "tick" }, box, ` ${curve.name}`);
  });
  const choose = element("fieldset", { class: "ticks" }, element("legend", {}, "Curves"), ...boxes);
  return [element("div", { class: "controls" }, axis), choose, chart, note(positions.note)];
}

/** Up to FIRST_SHOWN indices from the first to the last. */
export function spread(length) {
  if (length <= FIRST_SHOWN) return [...Array(length).keys()];
  return [...Array(FIRST_SHOWN).keys()].map((k) => Math.round((k * (length - 1)) / (FIRST_SHOWN - 1)));
}

/** The measured scores by layer, and what theory says of every head width. */
function scoresOf({ layers, theory }) {
  const heads = ["Layer", "Width of a head", "Spread", "Undivided", "Entropy, bits", "Undivided", "Of a uniform row"];
  const rows = layers.map((entry) => [
    `Layer ${entry.layer + 1}`,
    String(entry.head_dim),
    format(entry.spread),
    format(entry.spread_unscaled),
    format(entry.entropy),
    format(entry.entropy_unscaled),
    format(entry.uniform_entropy),
  ]);
  const x = { label: "width of a head", log: true, base: 2, show: String };
  const both = (divided, undivided) => [
    { name: "divided by √d", x: theory.head_dims, y: divided },
    { name: "undivided", x: theory.head_dims, y: undivided },
  ];
  return [
    element("h4", {}, "What the division by √d does to the scores"),
    note(
      "Undivided scores spread √d times as wide, so that the softmax rests on few positions: its entropy falls, " +
        "and with it the gradient. The spread is a standard deviation.",
    ),
    table("Scores by layer", heads, rows),
    lineChart({
      name: "Spread of the scores of random queries and keys",
      x,
      y: { label: "standard deviation", zero: true },
      series: both(theory.spread, theory.spread_unscaled),
      height: 150,
    }),
    lineChart({
      name: `Entropy of the softmax over ${theory.keys} keys`,
      x,
      y: { label: "entropy", unit: "bits", zero: true },
      series: both(theory.entropy, theory.entropy_unscaled),
      height: 150,
    }),
  ];
}
