/** What sections are put together from: a panel for each model, notes, tables that fold. */

import { element } from "page/dom";

/** The choice between a log axis of the distance and a linear one. */
export const AXES = [{ value: true, label: "log distance" }, { value: false, label: "linear distance" }];

/** A paragraph of words about what is shown. */
export const note = (text) => element("p", { class: "note" }, text);

/** The models, with names that tell them apart. */
export function namedModels({ models }) {
  const isTwice = models.length > 1 && models[0].name === models[1].name;
  if (!isTwice) return models;
  return models.map((model, at) => ({ ...model, name: `${model.name} (${["first", "second"][at]})` }));
}

/**
 * A grid with a panel for each model; a panel names its model where there are two.
 *
 * @param {object} page
 * @param {(model: object, index: number) => Node[]} build
 */
export function modelPanels(page, build) {
  const models = namedModels(page.data);
  const panels = models.map((model, index) => {
    const heading = models.length > 1 ? [element("h3", {}, model.name)] : [];
    return element("div", { class: "panel", "data-model": String(index) }, ...heading, ...build(model, index));
  });
  return element("div", { class: "panels" }, ...panels);
}

/**
 * A table in a box that scrolls by itself.
 *
 * @param {string} name The accessible name.
 * @param {string[]} heads
 * @param {string[][]} rows The first cell of a row names it.
 */
export function table(name, heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...cells]) => {
    return element("tr", {}, element("th", { scope: "row" }, first), ...cells.map((text) => element("td", {}, text)));
  });
  const whole = element("table", { class: "numbers" }, element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "chart-scroller", tabindex: "0", role: "region", "aria-label": name }, whole);
}

/** What is made only when its fold is opened. */
export function folded(summary, build) {
  const fold = element("details", { class: "chart-numbers" }, element("summary", {}, summary));
  fold.addEventListener("toggle", () => {
    if (fold.open && fold.childElementCount === 1) fold.append(build());
  });
  return fold;
}

/** "3 positions", "1 position". */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
