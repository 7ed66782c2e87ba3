/** Line charts as SVG: named series with bands and marks, a read-out by pointer and keyboard, and the numbers. */

import { element, format, svg } from "page/dom";
import { draw, look, withUnit } from "page/linework";

/**
 * @typedef {object} Series
 * @property {string} name
 * @property {number[]} x Ascending.
 * @property {(number | null)[]} y null leaves a gap.
 * @property {number[]} [low] The band's lower end.
 * @property {number[]} [high]
 *
 * @typedef {object} Chart
 * @property {string} name
 * @property {import("page/axes").Axis} x
 * @property {import("page/axes").Axis} y
 * @property {Series[]} series
 * @property {{x: number, label: string}[]} [marks] Vertical lines.
 * @property {number} [height] Pixels of the plot.
 */

const HINT = "The left and right arrow keys walk the points.";

/**
 * A figure with the chart; `figure.update(changes)` draws it again with some options changed.
 *
 * @param {Chart} options
 * @returns {HTMLElement & {update: (changes: Partial<Chart>) => void}}
 */
export function lineChart(options) {
  const picture = svg("svg", { class: "chart-picture", tabindex: "0", role: "application" });
  picture.setAttribute("aria-roledescription", "line chart");
  const caption = element("figcaption", { class: "chart-name" });
  const legend = element("ul", { class: "chart-legend" });
  const readout = element("p", { class: "chart-readout", "aria-live": "polite" });
  const numbers = element("details", { class: "chart-numbers" }, element("summary", {}, "Show the numbers"));
  const figure = element("figure", { class: "plot chart" }, caption, legend, picture, readout, numbers);

  let chart = options;
  let drawn = null;
  let stop = null;

  const redraw = () => {
    drawn = draw(picture, chart);
    point();
  };
  const point = () => {
    if (stop !== null && !drawn.stops.includes(stop)) stop = null;
    drawCursor(drawn, chart, stop);
    const hint = document.activeElement === picture ? HINT : "";
    readout.textContent = stop === null ? hint : reading(chart, stop);
  };
  const fill = () => {
    caption.textContent = chart.name;
    legend.replaceChildren(...(chart.series.length > 1 ? chart.series.map(legendEntry) : []));
    picture.setAttribute("aria-label", summary(chart));
    if (numbers.open) showNumbers(numbers, chart);
    redraw();
  };

  numbers.addEventListener("toggle", () => numbers.open && showNumbers(numbers, chart));
  for (const kind of ["pointermove", "pointerdown"]) {
    picture.addEventListener(kind, (event) => {
      stop = nearestStop(drawn, event.clientX - picture.getBoundingClientRect().left);
      point();
    });
  }
  for (const kind of ["focus", "blur"]) picture.addEventListener(kind, () => point());
  picture.addEventListener("keydown", (event) => {
    const next = keyStop(drawn.stops, stop, event.key);
    if (next === undefined) return;
    event.preventDefault();
    stop = next;
    point();
  });
  let width = 0;
  new ResizeObserver(([entry]) => {
    const current = Math.round(entry.contentRect.width);
    if (current === width) return;
    width = current;
    requestAnimationFrame(redraw);
  }).observe(figure);

  figure.update = (changes) => {
    chart = { ...chart, ...changes };
    fill();
  };
  fill();
  return figure;
}

function summary(chart) {
  const names = chart.series.map((series) => series.name).join(", ");
  return `${chart.name}: ${withUnit(chart.y)} over ${withUnit(chart.x)}; ${names}. The arrow keys walk the points.`;
}

const written = (value, axis) => (axis.show ? axis.show(value) : format(value));

function legendEntry(series, index) {
  const { color, dash, marker } = look(index);
  const sample = svg("svg", { width: "34", height: "12", "aria-hidden": "true" });
  sample.append(
    svg("line", { x1: "0", x2: "34", y1: "6", y2: "6", stroke: color, "stroke-width": "2", "stroke-dasharray": dash }),
    svg("path", { d: marker, transform: "translate(17 6)", fill: color }),
  );
  return element("li", {}, sample, series.name);
}

function nearestStop({ stops, across }, at) {
  let best = null;
  for (const stop of stops) if (best === null || Math.abs(across(stop) - at) < Math.abs(across(best) - at)) best = stop;
  return best;
}

/** The point a key leads to: null for none, undefined for a key that means nothing here. */
function keyStop(stops, stop, key) {
  const last = stops.length - 1;
  if (last < 0) return undefined;
  const at = stops.indexOf(stop);
  const page = Math.max(1, Math.round(stops.length / 10));
  const moves = { ArrowRight: at + 1, ArrowLeft: at < 0 ? last : at - 1, PageDown: at + page, PageUp: at - page };
  Object.assign(moves, { Home: 0, End: last });
  if (key === "Escape") return null;
  return key in moves ? stops[Math.min(Math.max(moves[key], 0), last)] : undefined;
}

function at(series, stop) {
  const index = series.x.indexOf(stop);
  return index < 0 ? null : index;
}

function drawCursor({ box, across, down, cursor }, chart, stop) {
  cursor.replaceChildren();
  if (stop === null) return;
  const x = across(stop);
  cursor.append(svg("line", { x1: x, x2: x, y1: box.top, y2: box.bottom, class: "chart-crosshair" }));
  chart.series.forEach((series, index) => {
    const value = series.y[at(series, stop) ?? -1] ?? null;
    if (value === null || !Number.isFinite(value) || down(value) > box.bottom) return;
    cursor.append(svg("circle", { cx: x, cy: down(value), r: 5, fill: look(index).color, class: "chart-point" }));
  });
}

function reading(chart, stop) {
  const parts = chart.series.flatMap((series) => {
    const index = at(series, stop);
    const value = series.y[index ?? -1] ?? null;
    if (value === null) return [];
    const [low, high] = [series.low?.[index] ?? null, series.high?.[index] ?? null];
    const between = low === null || high === null ? "" : ` (${written(low, chart.y)} to ${written(high, chart.y)})`;
    return [`${series.name} ${written(value, chart.y)}${between}`];
  });
  return `${chart.x.label} ${written(stop, chart.x)}: ${parts.join("; ")}`;
}

function showNumbers(numbers, chart) {
  const heads = [withUnit(chart.x), ...chart.series.flatMap(({ name, low }) => (low ? [name, "from", "to"] : [name]))];
  const head = element("tr", {}, ...heads.map((name) => element("th", { scope: "col" }, name)));
  const stops = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  const cell = (values, index) => {
    const value = values[index ?? -1] ?? null;
    return element("td", {}, value === null ? "–" : written(value, chart.y));
  };
  const rows = stops.map((stop) => {
    const cells = chart.series.flatMap((series) => {
      const index = at(series, stop);
      return [series.y, ...(series.low ? [series.low, series.high] : [])].map((values) => cell(values, index));
    });
    return element("tr", {}, element("th", { scope: "row" }, written(stop, chart.x)), ...cells);
  });
  const table = element("table", { class: "numbers" }, element("thead", {}, head), element("tbody", {}, ...rows));
  const label = `${chart.name}: numbers`;
  const scrolls = { class: "chart-scroller", tabindex: "0", role: "region", "aria-label": label };
  numbers.replaceChildren(numbers.firstElementChild, element("div", scrolls, table));
}
