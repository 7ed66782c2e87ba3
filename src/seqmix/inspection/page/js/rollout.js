/** Rollout: the product of the layers' matrices, beside the gradient of the last layer's outputs. */

import { lineChart } from "page/charts";
import { element, format, onScheme, select } from "page/dom";
import { HeatMap } from "page/heat";
import { count, modelPanels, note } from "page/parts";
import { paint, scaleOf } from "page/shades";
import { withError } from "page/weights";

export const id = "rollout";
export const title = "Rollout";

const ROW = 14; // pixels of a row of the gradient's picture

export function mount(root, page) {
  root.append(
    note(
      "The product of the layers' matrices, averaged over heads, with half of each layer's output from the residual " +
        "(Abnar & Zuidema 2020), beside the gradient of the last layer's output with respect to every input. " +
        "The product leaves out what the layers do to the values; the gradient does not.",
    ),
    modelPanels(page, (model) => (model.rollout ? rolloutOf(page, model) : [note(NONE)])),
  );
}

const NONE = "This model has no rollout: its layers cannot be multiplied, or it was not asked for.";

/** A row that sums to 1; one of zeros stays. */
export function shares(row) {
  const sum = row.reduce((total, value) => total + value, 0);
  return sum > 0 ? Array.from(row, (value) => value / sum) : Array.from(row);
}

function rolloutOf(page, model) {
  const { rollout } = model;
  const readout = element("p", { class: "chart-readout", "aria-live": "polite" });
  const map = new HeatMap(`Rollout of ${model.name}: targets down, sources across`, {
    onCell: (cell) => say(cell),
    onPick: ({ target }) => choose(nearest(rollout.targets, target)),
  });
  const strips = element("div", { class: "strips" });
  const chart = lineChart({ name: "Shares", x: { label: "source" }, y: { label: "share" }, series: [] });
  const words = element("p", { class: "rollout-words" });
  let blocks = null;

  const label = (position) => page.token(0, position);
  const say = (cell) => {
    readout.textContent = cell
      ? `“${label(cell.target)}” at ${cell.target} from “${label(cell.source)}” at ${cell.source}: ` +
        withError(blocks.product.value(0, cell.target, cell.source), blocks.product.step(0, cell.target))
      : "Point at a cell, or move to one with the arrow keys.";
  };
  const choose = (index) => {
    chooser.show(index);
    if (!blocks) return;
    const target = rollout.targets[index];
    map.mark({ target, source: target });
    chart.update(chartOf(blocks, rollout, index));
    words.textContent = wordsOf(rollout, index);
    for (const [at, strip] of [...strips.children].entries()) strip.classList.toggle("chosen", at === index);
  };
  const targets = rollout.targets.map((target, value) => ({ value, label: `${target}: ${label(target)}` }));
  const chooser = select("Target", targets, 0, (index) => choose(index));

  Promise.all([page.block(rollout.block), page.block(rollout.gradient_block)]).then(([product, gradient]) => {
    blocks = { product, gradient };
    const { time, source } = product;
    const values = whole(product);
    map.show({ values, time, source, scale: scaleOf(values, true), rowLabel: label, columnLabel: label });
    const row = ({ value, label: name }) => strip(gradient.row(0, value), name);
    strips.append(...targets.map(row));
    onScheme(() => {
      const chosen = [...strips.children].findIndex((node) => node.classList.contains("chosen"));
      strips.replaceChildren(...targets.map(row));
      strips.children[chosen].classList.add("chosen");
    });
    say(null);
    page.choice.watch(["target"], () => choose(nearest(rollout.targets, page.choice.get("target"))));
  });
  return [
    element("div", { class: "controls" }, chooser),
    element(
      "div",
      { class: "side-by-side" },
      element("div", {}, element("h4", {}, "Product of the layers"), map.canvas, readout),
      element("div", {}, element("h4", {}, "Gradient at the targets"), strips),
    ),
    note("Colours go with the square root of the weight; in the gradient each row has its own scale."),
    chart,
    words,
  ];
}

/** All rows of a block's only matrix, one after another. */
function whole(block) {
  const values = new Float32Array(block.time * block.source);
  for (let target = 0; target < block.time; target += 1) values.set(block.row(0, target), target * block.source);
  return values;
}

/** A row of the gradient as a strip of colours with its target's name. */
function strip(row, name) {
  const picture = paint(row, 1, row.length, scaleOf(row, true));
  picture.className = "strip-picture";
  picture.style.height = `${ROW}px`;
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `Gradient at ${name}: greatest at source ${row.indexOf(Math.max(...row))}`);
  return element("div", { class: "strip" }, element("span", { class: "strip-name" }, name), picture);
}

function chartOf({ product, gradient }, { targets }, index) {
  const target = targets[index];
  const x = [...Array(target + 1).keys()];
  const upTo = (row) => shares(row).slice(0, target + 1);
  return {
    name: `Where the output at ${target} comes from`,
    x: { label: "source", unit: "position", show: String },
    y: { label: "share of the row", zero: true },
    series: [
      { name: "rollout", x, y: upTo(product.row(0, target)) },
      { name: "gradient", x, y: upTo(gradient.row(0, index)) },
    ],
  };
}

function wordsOf({ targets, spearman, mean }, index) {
  const here = spearman[index] === null ? "cannot be told" : `is ${format(spearman[index])}`;
  const over = mean === null ? "" : ` Over ${count(targets.length, "target")} it is ${format(mean)} on average.`;
  const what = "the rank correlation (Spearman) of rollout and gradient";
  return `At ${targets[index]} ${what} ${here}; 1 is the same order.${over}`;
}

function nearest(targets, target) {
  const distances = targets.map((one) => Math.abs(one - target));
  return distances.indexOf(Math.min(...distances));
}
