// The layers of a model on one text as weights of links, and what the searches find among those that are strong enough.

import * as paths from "page/paths";

/** The heads of a layer together: a link is as strong as in the head where it is strongest. */
export const EVERY_HEAD = -1;

/** Reads all layers; a layer that has no head of this number counts with all of its heads. */
export async function readStack(page, model, text, head) {
  const layers = [];
  for (const mixer of page.data.models[model].mixers) {
    const block = await page.block(mixer.blocks[text]);
    const all = [...Array(block.heads).keys()];
    layers.push(paths.strongestHead(block, all.includes(head) ? [head] : all));
    await new Promise((resume) => setTimeout(resume)); // the page stays alive between layers
  }
  return new Stack(layers, page.data.texts[text].tokens.length);
}

class Stack {
  constructor(layers, time) {
    this.time = time;
    this.layers = layers;
    this.largest = layers.map((weights) => paths.rowLargest(weights, time));
    this.keep(0);
  }

  /** Keeps the links above this share of the largest of their row. */
  keep(threshold) {
    this.kept = this.layers.map((weights, at) => paths.keepStrong(weights, this.time, threshold, this.largest[at]));
  }

  steps(source, target) {
    return paths.steps(this.kept, this.time, source, target);
  }

  strongestPath(source, target) {
    return paths.strongestPath(this.kept, this.time, source, target);
  }

  /** `count` positions from `start` on, as far as links among them tell. */
  window(start, count) {
    return {
      count,
      layers: this.kept.map((weights) => paths.windowOf(weights, this.time, start, count)),
      largest: this.largest.map((rows) => rows.subarray(start, start + count)),
    };
  }
}

/** The weights of a window as shares of the largest of their row. */
export function shares({ layers, largest, count }) {
  return layers.map((weights, layer) => weights.map((weight, at) => weight / largest[layer][Math.floor(at / count)] || 0));
}

/** For each level, the nodes on any path of the window from `source` to `target`; null where none leads. */
export function litNodes({ layers, count }, source, target) {
  if (paths.steps(layers, count, source, target) === null) return null;
  const before = paths.leading(layers, count, target);
  return paths.reached(layers, count, source).map((nodes, level) => nodes.map((node, at) => node & before[level][at]));
}
