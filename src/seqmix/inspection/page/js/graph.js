// The section of the graph: positions as nodes, links with their weights as edges, layer over layer.

import { element, slider } from "page/dom";
import { graphPanel } from "page/graphpanel";

export const id = "graph";
export const title = "As a graph";

const KEYS =
  "Click below for the input and above for the output; by keyboard: arrow up and down choose which of the two, arrow " +
  "left and right move it, Home and End go to the ends of the text.";

/** Fills the section; called once, when the page opens. */
export function mount(root, page) {
  const { choice, data } = page;
  const range = { min: 0, max: 0.99, step: 0.01, value: 0.1, show: (value) => `${Math.round(100 * value)} %` };
  choice.set({ threshold: range.value });
  const controls = element(
    "div",
    { class: "controls" },
    slider("Links above this share of the largest of their row", range, (threshold) => choice.set({ threshold })),
  );
  const explanation = element(
    "p",
    { class: "note" },
    "Each row of nodes is the text, from the embedding below to the output above; between two rows stands a mixer, and a " +
      "line is a link of its matrix, darker where its weight is larger. A dotted vertical is the residual: staying in " +
      "place costs nothing. Choose an input and an output: the paths between them light up, the strongest one is drawn " +
      "thick.",
  );
  const panels = element("div", { class: "panels" });
  root.append(explanation, controls, panels, element("p", { class: "note", id: "graph-keys" }, KEYS));
  data.models.forEach((_, model) => panels.append(graphPanel(page, model)));
}
