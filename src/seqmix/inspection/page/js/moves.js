// What moves: the matrix of one text less that of another at the same positions, for a matrix that depends on content.

import { element, format, onScheme, select } from "page/dom";
import { HeatMap, zoomButtons } from "page/heat";
import { legend, scaleOf } from "page/shades";
import { difference, moved, weightsOf, withError } from "page/weights";
import { cellName } from "page/words";

/** The view of one model; it opens on demand and says so where there is nothing to compare. */
export function movesView(page, model) {
  const { choice, data } = page;
  const mixer = () => data.models[model].mixers[choice.get(`mixer${model}`)];
  const head = () => choice.get(`head${model}`);
  const text = () => choice.get("text");
  let other = null;

  const view = element("details", { class: "moves" }, element("summary", {}, "What moves with another text"));
  const note = element("p", { class: "note" });
  const summary = element("p", { class: "sentence", role: "status" });
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const controls = element("div", { class: "controls" });
  const scale = element("div", {});
  const body = element("div", {});
  let found = null;
  const map = new HeatMap(`Difference of two texts in ${data.models[model].name}`, { onCell: (cell) => say(cell) });
  map.canvas.setAttribute("aria-describedby", "matrix-keys");
  body.append(controls, summary, map.canvas, readout, scale);
  view.append(note, body);

  const say = (cell) => {
    readout.textContent = "Point at a cell, or move to one with the arrow keys.";
    if (!found || !cell) return;
    const { one, two, apart } = found;
    const of = (weights) => weights.values[cell.target * weights.source + cell.source];
    const off = apart.error(cell.target, cell.source);
    readout.textContent =
      `${cellName(page, text(), cell)}: ${format(of(one))}; in the other text “${page.token(other, cell.target)}” to ` +
      `“${page.token(other, cell.source)}”: ${format(of(two))}; difference ${withError(of(apart), off)}`;
  };

  let asked = 0;
  const draw = async () => {
    if (!view.open || body.hidden) return;
    const request = (asked += 1);
    const [first, second] = await Promise.all([text(), other].map((at) => page.block(mixer().blocks[at])));
    if (request !== asked) return;
    const [one, two] = [first, second].map((block) => weightsOf(block, head(), choice.get("normalised")));
    const apart = difference(one, two);
    found = { one, two, apart };
    const colours = { ...scaleOf(apart.values, choice.get("root")), signed: true };
    const label = (position) => {
      const [here, there] = [page.token(text(), position), page.token(other, position)];
      return here === there ? here : `${here}|${there}`;
    };
    map.show({ ...apart, scale: colours, rowLabel: label, columnLabel: label });
    scale.replaceChildren(legend(colours, format));
    summary.textContent =
      `${format(100 * moved(one, two))} % of the weight stands elsewhere, over the ${apart.time} positions that both ` +
      "texts have.";
    say(map.cell);
  };

  const offer = () => {
    const others = data.texts.map(({ name }, value) => ({ value, label: name })).filter(({ value }) => value !== text());
    const nothing = mixer().fixed || !others.length;
    note.textContent = mixer().fixed
      ? "Nothing moves: this matrix is the same for every input."
      : others.length
        ? "Above zero the chosen text has more weight, below zero the other one has."
        : "Only one text is in this page: give --text twice to compare two.";
    body.hidden = nothing;
    found = null;
    if (nothing) return;
    if (!others.some(({ value }) => value === other)) other = others[0].value;
    controls.replaceChildren(
      select("Against", others, other, (value) => {
        other = value;
        draw();
      }),
      zoomButtons(map),
    );
  };
  choice.watch([`mixer${model}`, "text", "texts"], offer);
  choice.watch([`mixer${model}`, `head${model}`, "text", "normalised", "root"], draw);
  view.addEventListener("toggle", draw);
  onScheme(draw);
  return view;
}
