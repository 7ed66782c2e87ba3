/** The picture of a line chart: grid, axes, marks, bands and lines. */

import { svg } from "page/dom";
import { scale, tickLabel } from "page/axes";

const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const MARKERS = [
  "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
  "M-3.2 -3.2h6.4v6.4h-6.4z",
  "M0 -4.2L4 3.2H-4z",
  "M0 -4.4L4.4 0L0 4.4L-4.4 0z",
];
const ROW = 15;

/** The look of the n-th series: a colour, a dash and a marker that together are its own up to 16 series. */
export function look(index) {
  const turn = (index + Math.floor(index / 4)) % 4;
  return { color: `var(--series-${(index % 4) + 1})`, dash: DASHES[turn], marker: MARKERS[turn] };
}

/** An axis's label with its unit. */
export const withUnit = (axis) => (axis.unit ? `${axis.label} (${axis.unit})` : axis.label);

/**
 * Draws everything but the cursor.
 *
 * @returns Where values lie: the plot's `box`, `across(x)` and `down(y)` in pixels, the group `cursor`, and `stops`,
 *   all x in order.
 */
export function draw(picture, chart) {
  const width = Math.max(picture.parentElement?.clientWidth ?? 0, 240);
  const marks = (chart.marks ?? []).filter((mark) => Number.isFinite(mark.x));
  const all = (key) => chart.series.flatMap((series) => series[key] ?? []).filter((value) => value !== null);
  const box = { left: 8, right: width - 12, top: 0, bottom: 0 };
  const x = scale([...all("x"), ...marks.map((mark) => mark.x)], chart.x, Math.max(3, Math.floor(width / 75)), false);
  const height = chart.height ?? 230;
  const y = scale([...all("y"), ...all("low"), ...all("high")], chart.y, Math.max(3, Math.floor(height / 40)), true);
  const labels = y.ticks.map((tick) => tickLabel(tick, chart.y));
  box.left = 14 + 7 * Math.max(...labels.map((label) => label.length));

  const across = (value) => box.left + x.to(value) * (box.right - box.left);
  const rows = markRows(marks, across, box);
  box.top = 24 + ROW * rows.count;
  box.bottom = box.top + height;
  const down = (value) => box.bottom - Math.max(y.to(value), -1) * height;

  const lines = svg("g", { class: "chart-lines" });
  chart.series.forEach((series, index) => lines.append(...seriesShapes(series, index, across, down, box)));
  const cursor = svg("g", { class: "chart-cursor" });
  setSize(picture, width, box.bottom + 40);
  const clip = clipTo(box);
  lines.setAttribute("clip-path", `url(#${clip.id})`);
  picture.replaceChildren(
    clip,
    yAxis(y.ticks, labels, chart.y, down, box),
    xAxis(x.ticks, chart.x, across, box),
    markLines(marks, rows.of, across, box),
    lines,
    cursor,
  );
  const stops = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  return { box, across, down, cursor, stops: stops.filter((value) => Number.isFinite(x.to(value))) };
}

function setSize(picture, width, height) {
  picture.setAttribute("width", width);
  picture.setAttribute("height", height);
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
}

let clips = 0;

function clipTo({ left, right, top, bottom }) {
  clips += 1;
  const clip = svg("clipPath", { id: `chart-clip-${clips}` });
  clip.append(svg("rect", { x: left - 5, y: top - 5, width: right - left + 10, height: bottom - top + 5 }));
  return clip;
}

function text(content, attributes) {
  const node = svg("text", attributes);
  node.textContent = content;
  return node;
}

function yAxis(ticks, labels, axis, down, box) {
  const group = svg("g", { class: "chart-axis" });
  group.append(text(withUnit(axis), { x: 2, y: 12, class: "chart-axis-name" }));
  ticks.forEach((tick, index) => {
    const at = down(tick);
    group.append(
      svg("line", { x1: box.left, x2: box.right, y1: at, y2: at, class: "chart-grid" }),
      text(labels[index], {
        x: box.left - 6,
        y: at + 4,
        "text-anchor": "end",
        class: "chart-y-tick",
        "data-value": tick,
        "data-at": at,
      }),
    );
  });
  return group;
}

function xAxis(ticks, axis, across, box) {
  const group = svg("g", { class: "chart-axis" });
  const middle = (box.left + box.right) / 2;
  group.append(
    svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "chart-base" }),
    text(withUnit(axis), { x: middle, y: box.bottom + 34, "text-anchor": "middle", class: "chart-axis-name" }),
  );
  for (const tick of ticks) {
    const at = across(tick);
    const anchor = at > box.right - 14 ? "end" : "middle";
    group.append(
      svg("line", { x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4, class: "chart-base" }),
      text(tickLabel(tick, axis), {
        x: anchor === "end" ? box.right + 8 : at,
        y: box.bottom + 17,
        "text-anchor": anchor,
        class: "chart-x-tick",
        "data-value": tick,
        "data-at": at,
      }),
    );
  }
  return group;
}

/** Puts the marks' labels on as few rows as keep them apart. */
function markRows(marks, across, box) {
  const ends = [];
  const of = new Map();
  for (const mark of [...marks].sort((a, b) => a.x - b.x)) {
    const wide = mark.label.length * 6.6 + 10;
    const start = Math.min(across(mark.x), box.right - wide);
    let row = ends.findIndex((end) => end <= start);
    if (row < 0) row = ends.length;
    ends[row] = start + wide;
    of.set(mark, { row, start });
  }
  return { of, count: ends.length };
}

function markLines(marks, rows, across, box) {
  const group = svg("g", { class: "chart-marks" });
  for (const mark of marks) {
    const at = across(mark.x);
    const { row, start } = rows.get(mark);
    const y = 20 + ROW * (row + 1) - 4;
    group.append(
      svg("line", { x1: at, x2: at, y1: y + 3, y2: box.bottom, class: "chart-mark", "data-value": mark.x }),
      text(mark.label, { x: Math.max(start, 2), y, class: "chart-mark-label" }),
    );
  }
  return group;
}

function seriesShapes(series, index, across, down, box) {
  const { color, dash, marker } = look(index);
  const shapes = [];
  if (series.low && series.high) {
    const hasBand = (i) => Number.isFinite(series.low[i]) && Number.isFinite(series.high[i]);
    const there = [...series.x.keys()].filter(hasBand);
    const corner = (values) => (i) => `${across(series.x[i])} ${down(values[i])}`;
    const d = [...there.map(corner(series.high)), ...there.reverse().map(corner(series.low))].join("L");
    shapes.push(svg("path", { d: d && `M${d}Z`, fill: color, class: "chart-band" }));
  }
  let d = "";
  let pen = "M";
  let last = -Infinity;
  const apart = series.x.length <= 24 ? 10 : 56;
  const dots = [];
  series.y.forEach((value, i) => {
    const at = across(series.x[i]);
    if (value === null || !Number.isFinite(value) || !Number.isFinite(at)) {
      pen = "M";
      return;
    }
    const height = down(value);
    d += `${pen}${at.toFixed(2)} ${height.toFixed(2)}`;
    pen = "L";
    if (at - last < apart || height > box.bottom) return;
    last = at;
    dots.push(svg("path", { d: marker, transform: `translate(${at} ${height})`, fill: color, class: "chart-dot" }));
  });
  const line = svg("path", { d, fill: "none", stroke: color, class: "chart-line", "stroke-dasharray": dash });
  line.setAttribute("data-series", series.name);
  shapes.push(line, ...dots);
  return shapes;
}
