// The pictures of a stack: links from layer to layer with the cone of one output lit, and the links of one layer.

import { cssColor } from "page/dom";
import { jumps, linkList } from "page/reach";

/** Links drawn one by one at most: all of them faintly, and those of the cone; more are shaded or left out. */
const FAINT_LINKS = 3000;
const LIT_LINKS = 8000;
const EDGE = 14;

/** A context of a canvas that is `width` by `height` CSS pixels. */
function contextOf(canvas, width, height) {
  const dots = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * dots);
  canvas.height = Math.round(height * dots);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(dots, 0, 0, dots, 0, 0);
  return context;
}

/** Where positions and levels stand: level 0 is the input, at the bottom. */
function layout(layers, length, width) {
  const row = Math.max(7, Math.min(64, 320 / layers.length));
  const height = row * layers.length + 2 * EDGE;
  const jump = [...jumps(layers), 0];
  jump[layers.length] = jump[layers.length - 1] * (layers[layers.length - 1].stride ?? 1);
  const step = (width - 2 * EDGE) / Math.max(1, length - 1);
  const x = (level, t) => EDGE + t * jump[level] * step, y = (level) => height - EDGE - level * row;
  return { height, row, step, x, y };
}

/** Links of all targets, or of the marked ones. */
function countLinks(matrix, marks) {
  const { starts } = linkList(matrix);
  if (!marks) return starts[matrix.targets];
  return marks.reduce((sum, mark, t) => sum + (mark ? starts[t + 1] - starts[t] : 0), 0);
}

function strokeLinks(context, matrix, level, place, marks) {
  const bottom = place.y(level), top = place.y(level + 1), { starts, sources } = linkList(matrix);
  context.beginPath();
  for (let t = 0; t < matrix.targets; t++) {
    if (marks && !marks[t]) continue;
    const x = place.x(level + 1, t);
    for (let i = starts[t]; i < starts[t + 1]; i++) {
      context.moveTo(place.x(level, sources[i]), bottom);
      context.lineTo(x, top);
    }
  }
  context.stroke();
}

/** What stands still: lit positions that no link but the residual passes on to themselves. */
function strokeResidual(context, { cells, sources }, level, place, marks) {
  context.beginPath();
  marks.forEach((mark, t) => {
    if (!mark || cells[t * sources + t]) return;
    context.moveTo(place.x(level, t), place.y(level));
    context.lineTo(place.x(level + 1, t), place.y(level + 1));
  });
  context.stroke();
}

function shade(context, level, place, below, above) {
  context.beginPath();
  context.moveTo(place.x(level, below.indexOf(1)), place.y(level));
  context.lineTo(place.x(level, below.lastIndexOf(1)), place.y(level));
  context.lineTo(place.x(level + 1, above.lastIndexOf(1)), place.y(level + 1));
  context.lineTo(place.x(level + 1, above.indexOf(1)), place.y(level + 1));
  context.closePath();
  context.fill();
}

function fillNodes(context, level, place, marks) {
  const radius = Math.max(0.7, Math.min(4, place.step * 0.35, place.row * 0.22)), y = place.y(level);
  for (const [kind, color, alpha, size] of [[0, "--soft", 0.45, radius * 0.7], [1, "--lit", 1, radius]]) {
    context.fillStyle = cssColor(color);
    context.globalAlpha = alpha;
    context.beginPath();
    marks.forEach((mark, t) => {
      if (mark !== kind) return;
      const x = place.x(level, t);
      if (size < 1.5) context.rect(x - size, y - size, 2 * size, 2 * size);
      else {
        context.moveTo(x + size, y);
        context.arc(x, y, size, 0, 2 * Math.PI);
      }
    });
    context.fill();
  }
  context.globalAlpha = 1;
}

/**
 * Draws the stack as a graph and says how: {isShaded, hides, positionAt(x)} with the output nearest to a pixel.
 * @param {Uint8Array[]} levels the cone of an output, see `cone`.
 */
export function drawGraph(canvas, { layers, residual }, matrices, levels) {
  const width = Math.max(160, canvas.parentElement.clientWidth), length = levels[0].length;
  const place = layout(layers, length, width), context = contextOf(canvas, width, place.height);
  const all = matrices.reduce((sum, matrix) => sum + countLinks(matrix), 0);
  const lit = matrices.reduce((sum, matrix, level) => sum + countLinks(matrix, levels[level + 1]), 0);
  const hides = all > FAINT_LINKS, isShaded = lit > LIT_LINKS;
  context.lineWidth = 1;
  context.strokeStyle = cssColor("--soft");
  context.globalAlpha = 0.16;
  if (!hides) matrices.forEach((matrix, level) => strokeLinks(context, matrix, level, place, null));
  context.strokeStyle = context.fillStyle = cssColor("--lit");
  matrices.forEach((matrix, level) => {
    context.globalAlpha = isShaded ? 0.3 : lit > 1000 ? 0.35 : 0.75;
    if (isShaded) shade(context, level, place, levels[level], levels[level + 1]);
    else strokeLinks(context, matrix, level, place, levels[level + 1]);
    context.globalAlpha = 0.3;
    if (residual) strokeResidual(context, matrix, level, place, levels[level + 1]);
  });
  levels.forEach((marks, level) => fillNodes(context, level, place, marks));
  const outputs = levels[levels.length - 1].length, gap = place.x(layers.length, 1) - place.x(layers.length, 0);
  return {
    isShaded, hides,
    positionAt: (x) => Math.max(0, Math.min(outputs - 1, Math.round((x - EDGE) / gap))),
  };
}

/** The four bytes of each colour, as one number. */
function pixels(colors) {
  const context = new OffscreenCanvas(colors.length, 1).getContext("2d");
  colors.forEach((color, i) => {
    context.fillStyle = color;
    context.fillRect(i, 0, 1, 1);
  });
  return new Uint32Array(context.getImageData(0, 0, colors.length, 1).data.buffer);
}

/** Draws cells of colours, one for each value, scaled to `width` by `height` without a blur. */
function drawCells(canvas, values, rows, columns, colors, width, height) {
  const palette = pixels(colors), cells = new Uint32Array(values.length);
  for (let i = 0; i < values.length; i++) cells[i] = palette[values[i]];
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(cells.buffer), columns, rows), 0, 0);
  const context = contextOf(canvas, width, height);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
}

/** Draws the links of one layer, targets downwards; the row of `target` is lit. */
export function drawMatrix(canvas, { targets, sources, cells }, target) {
  const width = Math.min(300, Math.max(160, canvas.parentElement.clientWidth));
  const values = cells.slice();
  for (let i = target * sources; i < (target + 1) * sources; i++) values[i] += 2;
  const colors = [cssColor("--low"), cssColor("--high"), cssColor("--line"), cssColor("--lit")];
  drawCells(canvas, values, targets, sources, colors, width, (width * targets) / sources);
}

/** Draws a cell for each input: how many layers it takes to the output (-1 for never), the fewest the strongest. */
export function drawReached(canvas, fewest) {
  const width = Math.max(160, canvas.parentElement.clientWidth), most = Math.max(1, ...fewest);
  const shades = Array.from({ length: most + 1 }, (_, count) =>
    `color-mix(in srgb, ${cssColor("--lit")} ${Math.round(100 - (70 * count) / (most + 1))}%, ${cssColor("--card")})`);
  const values = Uint16Array.from(fewest, (count) => count + 1);
  drawCells(canvas, values, 1, fewest.length, [cssColor("--line"), ...shades], width, 18);
}
