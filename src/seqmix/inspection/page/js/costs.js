/** Costs against the length of the context, of one model or two, and where they cross. */

import { lineChart } from "page/charts";
import { bytes, element, human } from "page/dom";
import { namedModels, note } from "page/parts";

export const id = "costs";
export const title = "Costs";

const CHARTS = [
  { key: "forward_flops", name: "FLOPs of a token read", label: "FLOPs a token", show: human },
  { key: "step_flops", name: "FLOPs of a token generated", label: "FLOPs a token", show: human },
  { key: "state_bytes", name: "State", label: "size", show: bytes, base: 2 },
];

export function mount(root, page) {
  const models = namedModels(page.data);
  const known = models.filter((model) => model.costs);
  for (const model of models) if (!model.costs) root.append(note(`${model.name}: the costs are not known.`));
  if (!known.length) return;
  root.append(element("div", { class: "panels small" }, ...CHARTS.map((chart) => chartOf(known, chart))));
  const { crossovers } = page.data;
  if (crossovers.length) {
    root.append(element("h3", {}, "Where they cross"));
    root.append(element("ul", { class: "crossovers" }, ...crossovers.map((sentence) => element("li", {}, sentence))));
  }
  root.append(...known.map(({ name, costs }) => note(`${name}: ${human(costs.parameters)} parameters. ${costs.note}`)));
}

function chartOf(models, { key, name, label, show, base }) {
  const series = models.map((model) => ({ name: model.name, x: model.costs.lengths, y: model.costs[key] }));
  const chart = lineChart({
    name,
    x: { label: "context", unit: "tokens", log: true, base: 2, show: String },
    y: { label, log: true, decades: 15, show, base },
    series,
  });
  return element("div", { class: "panel" }, chart, ...nothing(models, key));
}

/** A mixer that is not causal has no step and no state: said, since a log axis cannot show 0. */
function nothing(models, key) {
  const empty = models.filter((model) => model.costs[key].every((value) => !value));
  return empty.map((model) => note(`${model.name}: none.`));
}
