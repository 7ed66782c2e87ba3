// The matrix of one model: the choice of layer and head, the heat map, its read-out, legend, numbers and small pictures.

import { element, format, onScheme, select } from "page/dom";
import { headGrid } from "page/heads";
import { HeatMap, zoomButtons } from "page/heat";
import { movesView } from "page/moves";
import { legend, scaleOf } from "page/shades";
import { structureTable } from "page/structure";
import { weightsOf, withError } from "page/weights";
import { cellName, headNames, leftOut, mixerName, nature } from "page/words";

/**
 * The panel of one model.
 * @param {{onCell: Function, onView: Function}} linked told what the reader looks at, for the panels beside this one
 * @returns {{element: HTMLElement, point: Function, look: Function}}
 */
export function matrixPanel(page, model, linked) {
  const { choice, data } = page;
  const { name, mixers } = data.models[model];
  const keys = { mixer: `mixer${model}`, head: `head${model}` };
  const mixer = () => mixers[choice.get(keys.mixer)];
  const head = () => choice.get(keys.head);
  const text = () => choice.get("text");

  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const kind = element("p", { class: "note" });
  const sentence = element("p", { class: "sentence" });
  const scale = element("div", {});
  const numbers = element("div", {});
  const headChoice = element("span", {});
  const small = element("details", {}, element("summary", {}, "All heads of this layer"));
  let weights = null;

  const say = (cell) => {
    if (!weights || !cell) {
      readout.textContent = "Point at a cell, or move to one with the arrow keys.";
      return;
    }
    const value = weights.values[cell.target * weights.source + cell.source];
    readout.textContent =
      `${cellName(page, text(), cell)}: ${withError(value, weights.error(cell.target, cell.source))}`;
  };
  const map = new HeatMap(`Mixing matrix of ${name}`, {
    onCell: (cell) => {
      say(cell);
      linked.onCell(cell);
    },
    onPick: (cell) => choice.set(cell),
    onView: linked.onView,
  });
  map.canvas.setAttribute("aria-describedby", "matrix-keys");
  const moves = movesView(page, model);
  const layers = mixers.map((one, value) => ({ value, label: mixerName(one) }));
  const layerChoice = select("Layer", layers, choice.get(keys.mixer), (at) => {
    const last = headNames(mixers[at]).length - 1;
    choice.set({ [keys.mixer]: at, [keys.head]: Math.min(head(), last) });
  });

  let asked = 0;
  const draw = async () => {
    const request = (asked += 1);
    const block = await page.block(mixer().blocks[text()]);
    if (request !== asked) return;
    weights = weightsOf(block, head(), choice.get("normalised"));
    const colours = scaleOf(weights.values, choice.get("root"));
    const label = (position) => page.token(text(), position);
    map.show({ ...weights, scale: colours, rowLabel: label, columnLabel: label });
    map.mark({ target: choice.get("target"), source: choice.get("source") });
    scale.replaceChildren(legend(colours, format));
    say(map.cell);
    drawGrid(block);
  };
  const drawGrid = (block) => {
    small.querySelector(".heads")?.remove();
    small.hidden = headNames(mixer()).length < 2;
    if (!small.open || small.hidden) return;
    small.append(headGrid(block, {
      names: headNames(mixer()),
      chosen: head(),
      normalised: choice.get("normalised"),
      root: choice.get("root"),
      onChoose: (at) => choice.set({ [keys.head]: at }),
    }));
  };
  small.addEventListener("toggle", async () => drawGrid(await page.block(mixer().blocks[text()])));

  choice.watch([keys.mixer], () => {
    const names = headNames(mixer()).map((label, value) => ({ value, label }));
    headChoice.replaceChildren(select("Head", names, head(), (at) => choice.set({ [keys.head]: at })));
  });
  choice.watch([keys.mixer, keys.head, "text"], () => {
    layerChoice.show(choice.get(keys.mixer));
    headChoice.firstChild.show(head());
    kind.textContent = nature(mixer()) + leftOut(mixer());
    sentence.textContent = mixer().sentences[text()][head()];
    numbers.replaceChildren(structureTable(mixer().structure[text()][head()]));
  });
  choice.watch([keys.mixer, keys.head, "text", "normalised", "root"], draw);
  onScheme(draw);
  choice.watch(["target", "source"], () => map.mark({ target: choice.get("target"), source: choice.get("source") }));

  const panel = element(
    "div",
    { class: "panel matrix" },
    element("h3", {}, name),
    element("div", { class: "controls" }, layerChoice, headChoice, zoomButtons(map)),
    kind,
    element(
      "div",
      { class: "beside" },
      element("div", {}, map.canvas, readout, scale),
      element("div", {}, sentence, numbers, small),
    ),
    moves,
  );
  const point = (cell) => {
    map.point(cell);
    say(cell);
  };
  return { element: panel, point, look: (view) => map.look(view) };
}
