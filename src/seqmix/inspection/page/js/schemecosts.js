// What the schemes of the playground cost against the length of the sequence, and where two of them cross.

import { lineChart } from "page/charts";
import { bytes, choices, element, human } from "page/dom";
import { number } from "page/formulas";
import { stackPrices, stackStepPrices } from "page/prices";
import { isCausal, LONGEST, stackOf } from "page/rules";

const LENGTHS = Array.from({ length: 13 }, (_, i) => 16 * 2 ** i);
const flops = ({ product, other }) => product + other;

/** What is compared, each a function of layers, width and lengths; null where a scheme has none. */
export const QUANTITIES = {
  forward: {
    label: "FLOPs a token, whole sequence", unit: "FLOPs a token", show: human,
    of: (layers, width, lengths) =>
      stackPrices(layers, width, lengths).map((price, i) => flops(price) / lengths[i]),
  },
  step: {
    label: "FLOPs of the next token", unit: "FLOPs", show: human, decodes: true,
    of: (layers, width, lengths) =>
      stackStepPrices(layers, width, lengths.map((length) => length - 1)).map(flops),
  },
  state: {
    label: "State while decoding", unit: "bytes", show: bytes, decodes: true,
    of: (layers, width, lengths) => stackPrices(layers, width, lengths).map((price) => price.state),
  },
};

/** The values of a quantity, null where the scheme is not decoded a token at a time. */
export function values(quantity, settings, width, lengths) {
  const { of, decodes } = QUANTITIES[quantity];
  return decodes && !isCausal(settings) ? null : of(stackOf(settings, width).layers, width, lengths);
}

/**
 * The first lengths from which on another of two schemes has less, found between the lengths of the chart by
 * bisection: {start, changes: [{from, less}]}, with -1 for the first scheme, 1 for the second, 0 for neither.
 */
export function crossovers(quantity, one, other, width) {
  const less = (lengths) => {
    const a = values(quantity, one, width, lengths), b = values(quantity, other, width, lengths);
    return lengths.map((_, i) => Math.sign(a[i] - b[i]));
  };
  const signs = less(LENGTHS), changes = [];
  for (let i = 1; i < LENGTHS.length; i++) {
    if (signs[i] === signs[i - 1]) continue;
    let low = LENGTHS[i - 1], high = LENGTHS[i];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (less([middle])[0] === signs[i]) high = middle;
      else low = middle;
    }
    changes.push({ from: high, less: signs[i] });
  }
  return { start: signs[0], changes };
}

/** The crossovers in a sentence. */
export function crossoverSentence(quantity, { start, changes }, [one, other]) {
  const { label } = QUANTITIES[quantity];
  const who = (sign) => (sign < 0 ? `less with ${one}` : sign > 0 ? `less with ${other}` : "equal");
  if (!changes.length) return `${label}: ${who(start)} at all lengths from 16 to ${number(LONGEST)} tokens.`;
  const parts = changes.map((change) => `from ${number(change.from)} tokens on ${who(change.less)}`);
  return `${label}: ${who(start)} at 16 tokens; ${parts.join("; ")}.`;
}

/** The panel of costs: `update(schemes, shared)` with [{name, settings}] of one or two schemes. */
export function costPanel() {
  let chosen = "forward", last = null;
  const options = Object.entries(QUANTITIES).map(([value, { label }]) => ({ value, label }));
  const pick = choices("Quantity", options, chosen, (value) => {
    chosen = value;
    update(...last);
  });
  let chart = null;
  const place = element("div"), missing = element("p", { class: "note" });
  const said = element("ul", { class: "crossovers", "aria-live": "polite" });
  const table = element("table", { class: "numbers" });
  const scrolls = { class: "scroll", tabindex: "0", role: "region", "aria-label": "What it costs: numbers" };
  const root = element("div", { class: "panel" }, element("h3", { text: "What it costs" }),
    element("div", { class: "controls" }, pick), place, missing, said, element("div", scrolls, table),
    element("p", { class: "note", text: "The mixers alone, for one sequence of float32 numbers: no embedding, norms or "
      + "feed-forward." }));

  function update(schemes, { width, length }) {
    last = [schemes, { width, length }];
    const { label, unit, show } = QUANTITIES[chosen];
    const found = schemes.map(({ name, settings }) =>
      ({ name, x: LENGTHS, y: values(chosen, settings, width, LENGTHS) }));
    const series = found.filter(({ y }) => y !== null);
    const drawing = {
      name: label, series, x: { label: "length", unit: "tokens", log: true, base: 2, show: String },
      y: { label: unit, log: true, decades: 15, base: chosen === "state" ? 2 : undefined, show },
    };
    if (chart) chart.update(drawing);
    else {
      chart = lineChart(drawing);
      place.append(chart);
    }
    missing.textContent = found.filter(({ y }) => y === null)
      .map(({ name }) => `${name} looks ahead, so it cannot be decoded a token at a time.`).join(" ");
    said.replaceChildren(...sentences(schemes, width).map((text) => element("li", { text })));
    fillTable(table, schemes, width, length);
  }

  return { root, update };
}

function sentences(schemes, width) {
  if (schemes.length < 2) return [];
  const [one, other] = schemes.map(({ settings }) => settings), names = schemes.map(({ name }) => name);
  return Object.keys(QUANTITIES)
    .filter((quantity) => !QUANTITIES[quantity].decodes || (isCausal(one) && isCausal(other)))
    .map((quantity) => crossoverSentence(quantity, crossovers(quantity, one, other, width), names));
}

function fillTable(table, schemes, width, length) {
  const rows = schemes.map(({ name, settings }) => {
    const [price] = stackPrices(stackOf(settings, width).layers, width, [length]);
    const cells = Object.entries(QUANTITIES).map(([key, { show }]) => {
      const found = values(key, settings, width, [length]);
      return element("td", { "data-cost": key, text: found ? show(found[0]) : "–" });
    });
    const exact = number(price.parameters), text = human(price.parameters);
    const parameters = element("td", { "data-cost": "parameters", title: exact, text });
    return element("tr", {}, element("th", { scope: "row", text: name }), parameters, cells);
  });
  const heads = ["Parameters", ...Object.values(QUANTITIES).map(({ label }) => label)];
  table.replaceChildren(
    element("caption", { text: `At ${number(length)} tokens` }),
    element("thead", {}, element("tr", {}, element("td"), heads.map((text) => element("th", { scope: "col", text })))),
    element("tbody", {}, rows),
  );
}
