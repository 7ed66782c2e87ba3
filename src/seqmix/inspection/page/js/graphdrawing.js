// Draws positions as nodes and links as lines, layer over layer from the embedding (below) to the output (above).

import { cssColor } from "page/dom";

const MARGIN = 58; // pixels for the names of the layers
const LABELS = 64; // pixels for the tokens above and below

/**
 * @typedef {object} Graph
 * @property {number} count positions in the window
 * @property {Float32Array[]} layers strong links of the window; weights relative to the largest of their row, 0 for none
 * @property {string[]} names of the layers
 * @property {string[]} tokens of the positions
 * @property {number} source chosen input in the window, negative or beyond it where it stands outside
 * @property {number} target chosen output
 * @property {Uint8Array[] | null} lit nodes on a path, for each level
 * @property {{layer: number, source: number, target: number}[] | null} strongest path
 */

/** Where things stand on a canvas of this width. */
export function layout(width, count, layers) {
  const gap = Math.min(76, Math.max(28, 400 / layers));
  const across = (width - MARGIN - 8) / count;
  const height = 2 * LABELS + gap * layers;
  return {
    width,
    height,
    across,
    x: (position) => MARGIN + (position + 0.5) * across,
    y: (level) => height - LABELS - level * gap,
    position: (x) => Math.min(count - 1, Math.max(0, Math.floor((x - MARGIN) / across))),
    isUpper: (y) => y < height / 2,
  };
}

/** Draws the whole graph. */
export function drawGraph(context, place, graph) {
  context.clearRect(0, 0, place.width, place.height);
  drawResiduals(context, place, graph);
  const isLit = (layer, source, target) =>
    Boolean(graph.lit && graph.lit[layer][source] && graph.lit[layer + 1][target]);
  drawLinks(context, place, graph, "--ink", graph.lit ? 0.3 : 1, (...link) => !isLit(...link));
  drawLinks(context, place, graph, "--accent", 1, isLit);
  drawPath(context, place, graph);
  drawNodes(context, place, graph);
  drawNames(context, place, graph);
}

function line(context, place, { layer, source, target }) {
  context.moveTo(place.x(source), place.y(layer));
  context.lineTo(place.x(target), place.y(layer + 1));
}

function drawResiduals(context, place, { count, layers }) {
  context.setLineDash([1, 4]);
  context.lineWidth = 1;
  context.strokeStyle = cssColor("--line");
  context.beginPath();
  for (let position = 0; position < count; position += 1) {
    context.moveTo(place.x(position), place.y(0));
    context.lineTo(place.x(position), place.y(layers.length));
  }
  context.stroke();
  context.setLineDash([]);
}

/** Each line is drawn by itself and one pixel wide: browsers have a quick way for that, and it is 10 times as fast. */
function drawLinks(context, place, { count, layers }, colour, strength, isWanted) {
  context.lineWidth = 1;
  context.strokeStyle = cssColor(colour);
  layers.forEach((weights, layer) => {
    for (let target = 0; target < count; target += 1) {
      for (let source = 0; source < count; source += 1) {
        const weight = weights[target * count + source];
        if (!(weight > 0) || !isWanted(layer, source, target)) continue;
        context.globalAlpha = strength * weight;
        context.beginPath();
        line(context, place, { layer, source, target });
        context.stroke();
      }
    }
  });
  context.globalAlpha = 1;
}

/** The strongest path, thick; where it stays in place it is dashed. */
function drawPath(context, place, { layers, source, strongest }) {
  if (!strongest) return;
  context.lineWidth = 3;
  context.strokeStyle = cssColor("--lit");
  let at = source;
  for (let layer = 0; layer < layers.length; layer += 1) {
    const link = strongest.find((one) => one.layer === layer);
    context.setLineDash(link ? [] : [3, 5]);
    context.beginPath();
    line(context, place, link ?? { layer, source: at, target: at });
    context.stroke();
    at = link?.target ?? at;
  }
  context.setLineDash([]);
}

function drawNodes(context, place, { count, layers, lit, source, target }) {
  const radius = Math.min(4, place.across / 3);
  for (let level = 0; level <= layers.length; level += 1) {
    for (let position = 0; position < count; position += 1) {
      const isEnd = (level === 0 && position === source) || (level === layers.length && position === target);
      context.fillStyle = cssColor(isEnd ? "--lit" : lit?.[level][position] ? "--accent" : "--soft");
      context.beginPath();
      context.arc(place.x(position), place.y(level), isEnd ? radius + 2 : radius, 0, 2 * Math.PI);
      context.fill();
    }
  }
}

function drawNames(context, place, { count, layers, names, tokens, source, target }) {
  context.font = "11px ui-monospace, monospace";
  context.textBaseline = "middle";
  context.textAlign = "right";
  context.fillStyle = cssColor("--soft");
  names.forEach((name, layer) => context.fillText(name, MARGIN - 8, (place.y(layer) + place.y(layer + 1)) / 2));
  const every = Math.ceil(12 / place.across);
  const write = (position, level, shift, align, isEnd) => {
    if (position % every && !isEnd) return;
    context.save();
    context.translate(place.x(position), place.y(level) + shift);
    context.rotate(-Math.PI / 2);
    context.textAlign = align;
    context.fillStyle = cssColor(isEnd ? "--lit" : "--soft");
    context.fillText(tokens[position].slice(0, 7), 0, 0);
    context.restore();
  };
  for (let position = 0; position < count; position += 1) {
    write(position, 0, 10, "right", position === source);
    write(position, layers.length, -10, "left", position === target);
  }
}
