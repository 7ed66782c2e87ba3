/** What the context is worth: the loss by position, and the loss when everything further back is cut off. */

import { lineChart } from "page/charts";
import { format } from "page/dom";
import { count, namedModels, note } from "page/parts";

export const id = "context";
export const title = "What the context is worth";

export function mount(root, page) {
  const models = namedModels(page.data);
  const known = models.filter((model) => model.context);
  for (const { name, context } of models) {
    if (!context) root.append(note(`What the context is worth to ${name} was not measured.`));
  }
  if (!known.length) return;
  const { unit } = known[0].context;
  const about = (model, words) => note(models.length > 1 ? `${model.name}: ${words}` : words);
  root.append(
    note("The same targets, each predicted from its last tokens alone: all that stands further back is cut off."),
    lineChart({
      name: "Loss when everything further back is cut off",
      x: { label: "context kept", unit: "tokens", log: true, base: 2, show: String },
      y: { label: "loss", unit },
      series: known.length > 1 ? known.map(cutOff) : [cutOff(known[0]), wholeContext(known[0].context.ablation)],
      marks: known.flatMap((model) => worthMark(model, models.length > 1)),
    }),
    ...known.map((model) => about(model, worthInWords(model.context))),
    lineChart({
      name: "Loss by position",
      x: { label: "tokens read before", log: true, zero: true, show: format },
      y: { label: "loss", unit },
      series: known.map(({ name, context: { loss_by_position: loss } }) => ({ name, x: loss.positions, y: loss.bits })),
    }),
    ...known.map((model) => about(model, model.context.source)),
  );
}

/** The band is the interval of the difference to the whole context, around the whole context's loss. */
function cutOff({ name, context: { ablation } }) {
  const { distances, bits: values, low, high, whole } = ablation;
  const around = (ends) => ends.map((end) => (end === null ? null : whole + end));
  return { name, x: distances, y: values, low: around(low), high: around(high) };
}

const wholeContext = ({ distances, whole }) => ({ name: "whole context", x: distances, y: distances.map(() => whole) });

/** Whether the loss of the shortest cut is told from the whole context's. */
const gains = ({ bits: values, whole, low }) => values[0] > whole && (low[0] === null || low[0] > 0);

/** The least measured context that keeps 90 % of what the whole one gains; null if that is nothing, or none does. */
export function ninetyPercent(ablation) {
  if (!gains(ablation)) return null;
  const { distances, bits: values, whole } = ablation;
  return distances.find((_, at) => values[at] - whole <= 0.1 * (values[0] - whole)) ?? null;
}

const shortened = (name) => (name.length > 20 ? `${name.slice(0, 19)}…` : name);

function worthMark({ name, context }, named) {
  const last = ninetyPercent(context.ablation);
  return last === null ? [] : [{ x: last, label: named ? `90 %: ${shortened(name)}` : "90 % of the worth" }];
}

export function worthInWords({ ablation, unit }) {
  const { distances, bits: values, whole, low, high } = ablation;
  const shortest = distances[0] === 1 ? "the last token" : `the last ${count(distances[0], "token")}`;
  const basis = `over ${count(ablation.targets, "target")}`;
  if (!gains(ablation)) return `More context than ${shortest} is worth nothing that can be told from 0 (${basis}).`;
  const interval = low[0] === null ? "" : `95 % interval ${format(low[0])} to ${format(high[0])}, `;
  const gain = `${format(values[0] - whole)} ${unit}`;
  const worth = `The whole context is worth ${gain} more than ${shortest} (${interval}${basis}).`;
  const last = ninetyPercent(ablation);
  if (last === null) return `${worth} No cut that was measured keeps 90 % of that.`;
  return `${worth} 90 % of what the context is worth lies within the last ${count(last, "token")}.`;
}
