// What a layer is, in the options of the library's own mixers, and which positions it links.
//
// A layer is an entry of a model's `mixers`: {name, ...options}. The `pattern` of attention is an object (links.js) or
// null for all links, and `dilation` is always the list that the heads cycle through.

import { isBounded, patternMatrix, patternText, windowSeen, windowSpan } from "page/links";

/** Mixers that convolve with a kernel and dilations. */
export const CONVOLUTIONS = ["depthwise_conv", "gated_conv", "convsamba", "conv", "bytenet"];
const LONG = ["global_conv", "gated_global_conv"];
const RECURRENT = ["lstm", "mamba2"];

/** ConvSamba's rule: 1, 2, 4, ... while kernel * dilation stays within the context. */
export function doublings(kernel, context) {
  const count = Math.floor(Math.log2(Math.max(1, Math.floor(context / kernel)))) + 1;
  return Array.from({ length: Math.max(1, count) }, (_, power) => 2 ** power);
}

/** Channels of each dilation, [{dilation, channels}]: heads, as equal in width as can be, take them in turn. */
export function channelGroups(layer, width) {
  const heads = Math.min(width, layer.heads ?? layer.dilation.length);
  const turns = Array.from({ length: heads }, (_, head) => head % layer.dilation.length).sort((a, b) => a - b);
  const channels = new Map();
  turns.forEach((turn, head) => {
    const dilation = layer.dilation[turn];
    const share = Math.floor(width / heads) + (head < width % heads ? 1 : 0);
    channels.set(dilation, (channels.get(dilation) ?? 0) + share);
  });
  return [...channels].map(([dilation, count]) => ({ dilation, channels: count }));
}

/** Dilations that some channel has. */
const dilationsInUse = (layer) => {
  const heads = layer.heads ?? layer.dilation.length;
  return [...new Set(layer.dilation.slice(0, heads))];
};

/** Whether every output is linked to every earlier position. */
export const seesEverything = (layer) =>
  RECURRENT.includes(layer.name) || (layer.name === "attention" && layer.pattern === null);

/**
 * How far back the sources of one output stand, as runs of equal steps [{first, step, count}], negative for ahead;
 * null for no bound. The lags of positions themselves, without the residual.
 */
export function lagRuns(layer) {
  if (RECURRENT.includes(layer.name)) return null;
  if (LONG.includes(layer.name)) return [{ first: 0, step: 1, count: layer.length }];
  if (layer.name !== "attention") {
    return dilationsInUse(layer).map((dilation) => {
      const reach = (layer.kernel - 1) * dilation;
      const left = layer.causal ? reach : Math.floor(reach / 2);
      return { first: left - reach, step: dilation, count: layer.kernel };
    });
  }
  if (!isBounded(layer.pattern)) return null;
  const { size, dilation, block } = layer.pattern.window;
  const reach = block > 1 ? size * block - 1 : (size - 1) * dilation;
  const first = layer.causal ? 0 : -reach;
  return [{ first, step: dilation, count: (reach - first) / dilation + 1 }];
}

/** The least and the greatest lag of runs. */
export const lagBounds = (runs) => ({
  ahead: Math.min(...runs.map((run) => run.first)),
  back: Math.max(...runs.map((run) => run.first + (run.count - 1) * run.step)),
});

/** The span in positions, the present one included; null for no bound. */
export function receptiveField(layer) {
  const runs = lagRuns(layer);
  if (runs === null) return null;
  // A position within a block sees further to one side than to the other, so the lags of all are more than a span.
  if (layer.name === "attention") return windowSpan(layer.pattern.window, layer.causal);
  if (LONG.includes(layer.name)) return layer.length;
  return (layer.kernel - 1) * Math.max(...dilationsInUse(layer)) + 1;
}

/** How many positions of the field one layer really sees; null for no bound. */
export function positionsSeen(layer) {
  const runs = lagRuns(layer);
  if (runs === null) return null;
  if (layer.name === "attention") return windowSeen(layer.pattern.window, layer.causal);
  if (runs.length === 1) return runs[0].count;
  const lags = new Set();
  for (const { first, step, count } of runs) for (let i = 0; i < count; i++) lags.add(first + i * step);
  return lags.size;
}

/** How many positions a layer leaves of a sequence. */
export const positionsOut = (layer, length) => Math.ceil(length / (layer.stride ?? 1));

/**
 * The links of a layer over `length` positions: {targets, sources, cells}, with cells[t * sources + s] 1 for a link.
 */
export function linkMatrix(layer, length) {
  const sources = length, targets = positionsOut(layer, length);
  if (layer.name === "attention") {
    return { targets, sources, cells: patternMatrix(layer.pattern, length, layer.causal) };
  }
  const runs = lagRuns(layer) ?? [{ first: 0, step: 1, count: length }];
  const cells = new Uint8Array(targets * sources);
  for (let target = 0; target < targets; target++) {
    const here = target * (layer.stride ?? 1);
    for (const { first, step, count } of runs) {
      for (let i = 0, source = here - first; i < count && source >= 0; i++, source -= step) {
        if (source < sources) cells[target * sources + source] = 1;
      }
    }
  }
  return { targets, sources, cells };
}

/** The layer as the library takes it: {name, ...options}. */
export function libraryOptions(layer) {
  const { pattern, dilation, ...options } = layer;
  if (pattern) {
    const { size, dilation: step, block } = pattern.window;
    const isWindow = isBounded(pattern) && step === 1 && block === 1;
    return isWindow ? { ...options, window: size } : { ...options, pattern: patternText(pattern) };
  }
  if (dilation === undefined) return options;
  if (layer.name === "convsamba") return { ...options, dilation };
  return { ...options, dilation: dilation.length === 1 ? dilation[0] : dilation };
}
