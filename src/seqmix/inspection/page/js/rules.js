// What the reader sets, as layers: the rule by which dilations grow from layer to layer, and the limits of each field.

import { doublings, lagBounds, lagRuns, seesEverything } from "page/schemes";
import { AT_ONCE, lagSet, lagSetWork } from "page/reach";

/** Positions up to which prices and links are counted. */
export const LONGEST = 65536;

/** Values that a slider stops at, a few in each doubling; a number field takes all between. */
function stops(low, high) {
  const found = new Set([low, high]);
  for (let power = 1; power <= high; power *= 2) {
    for (const value of [power, 1.25 * power, 1.5 * power, 1.75 * power]) {
      if (Number.isInteger(value) && value >= low && value <= high) found.add(value);
    }
  }
  return [...found].sort((a, b) => a - b);
}

/** The numbers that a scheme is made of, by name. */
export const NUMBERS = {
  layers: { label: "Layers", stops: stops(1, 64), value: 4 },
  kernel: { label: "Kernel", stops: stops(1, 512), value: 3 },
  stride: { label: "Stride", stops: stops(1, 8), value: 2 },
  window: { label: "Window", stops: stops(1, 8192), value: 5 },
  dilation: { label: "Dilation", stops: stops(1, 8192), value: 1 },
  growth: { label: "Dilation × by layer", stops: stops(1, 8), value: 1 },
  again: { label: "Begin again after (0: never)", stops: stops(0, 32), value: 0 },
  context: { label: "Kernel × dilation up to", stops: stops(16, LONGEST), value: 8192 },
  block: { label: "Block", stops: stops(1, 128), value: 1 },
  globals: { label: "Global positions", stops: stops(0, 256), value: 0 },
  randoms: { label: "Random links", stops: stops(0, 16), value: 0 },
  heads: { label: "Heads", stops: stops(1, 64), value: 8 },
  shared: { label: "Heads that share keys", stops: stops(1, 64), value: 1 },
  taps: { label: "Kernel (all positions)", stops: stops(2, LONGEST), value: 1024 },
  states: { label: "State size", stops: stops(1, 256), value: 128 },
};

/** The numbers that both schemes share. */
export const SHARED = {
  width: { label: "Width", stops: stops(8, 8192), value: 512 },
  length: { label: "Sequence length", stops: stops(2, LONGEST), value: 1024 },
  drawn: { label: "Positions drawn", stops: stops(4, 512), value: 32 },
};

const DILATED = ["dilation", "growth", "again", "list"];

/** Kinds of links: their name, the library's mixers that have them, the fields that matter, whether they go one way. */
export const KINDS = {
  convolution: {
    label: "convolution", mixers: ["depthwise_conv", "gated_conv", "conv", "bytenet"],
    fields: ["kernel", ...DILATED], twoWays: true,
  },
  heads: {
    label: "convolution, dilations by head", mixers: ["convsamba"], fields: ["kernel", "context"], twoWays: true,
  },
  strided: { label: "strided convolution", mixers: ["conv"], fields: ["kernel", "stride", ...DILATED] },
  sparse: {
    label: "attention to a window, global and random positions", mixers: ["attention"],
    fields: ["window", ...DILATED, "block", "globals", "randoms", "heads", "shared"], twoWays: true,
  },
  full: { label: "full attention", mixers: ["attention"], fields: ["heads", "shared"], twoWays: true },
  global: { label: "global convolution", mixers: ["gated_global_conv", "global_conv"], fields: ["taps"] },
  gates: { label: "recurrence with gates (LSTM)", mixers: ["lstm"], fields: [] },
  state: { label: "recurrence of a state (Mamba-2)", mixers: ["mamba2"], fields: ["states"] },
};

/** Settings with every field, from those that differ from the usual ones. */
export const withDefaults = (settings) => ({
  ...Object.fromEntries(Object.entries(NUMBERS).map(([key, { value }]) => [key, value])),
  kind: "convolution", mixer: KINDS[settings.kind ?? "convolution"].mixers[0], list: "", causal: true, ...settings,
});

/** The numbers in a text such as "1, 2, 4"; an empty list where it is no such list. */
export function readList(text) {
  const numbers = text.split(/[\s,;]+/).filter(Boolean).map(Number);
  const { stops: all } = NUMBERS.dilation;
  return numbers.every((number) => Number.isInteger(number) && number >= 1 && number <= all.at(-1)) ? numbers : [];
}

/** The dilation by layer: entries of the list, or start * growth^layer, from the start again after some layers. */
export function dilationRule(settings) {
  const list = readList(settings.list);
  if (list.length) return (layer) => list[layer % list.length];
  const { dilation, growth, again } = settings;
  return (layer) => dilation * growth ** (again ? layer % again : layer);
}

const greatestDivisor = (a, b) => (b ? greatestDivisor(b, a % b) : a);

const largestDivisor = (number, most) => {
  let divisor = Math.min(number, most);
  while (number % divisor) divisor--;
  return divisor;
};

/** The heads that are used: the most, up to those asked for, that divide the width. */
export const headsIn = (settings, width) => largestDivisor(width, settings.heads);

function attentionLayer(settings, width, pattern) {
  const heads = headsIn(settings, width), groups = heads / largestDivisor(heads, settings.shared);
  const layer = { name: "attention", heads, causal: settings.causal, pattern };
  return groups === heads ? layer : { ...layer, kv_heads: groups };
}

/** The pattern of one layer of sparse attention; blocks stand side by side, so they take no dilation. */
function patternOf(settings, dilation) {
  const { block } = settings;
  return {
    window: { size: settings.window, dilation: block > 1 ? 1 : dilation, block },
    global: settings.globals * block,
    random: settings.randoms ? { count: settings.randoms, seed: 0, block } : null,
  };
}

/** A layer of some dilation in the options of the library's mixer. */
export function layerOf(settings, width, step) {
  const { kind, mixer: name, kernel, causal } = settings, dilation = [step];
  const build = {
    convolution: () => ({ name, kernel, dilation, causal }),
    heads: () => ({ name, kernel, dilation: doublings(kernel, settings.context), causal }),
    strided: () => ({ name, kernel, dilation, causal: false, stride: settings.stride }),
    sparse: () => attentionLayer(settings, width, patternOf(settings, step)),
    full: () => attentionLayer(settings, width, null),
    global: () => ({ name, length: settings.taps }),
    gates: () => ({ name }),
    state: () => ({ name, state_size: settings.states }),
  };
  return build[kind]();
}

/** What the fields of a scheme do not say themselves. */
export function hintsOf(settings, width) {
  const { kind, heads, block, list, randoms } = settings, used = headsIn(settings, width);
  const has = (field) => KINDS[kind].fields.includes(field);
  const bound = NUMBERS.dilation.stops.at(-1);
  return [
    [has("heads") && used !== heads, `${heads} heads do not divide the width ${width}, so ${used} are counted.`],
    [has("list") && list.trim() && !readList(list).length,
      `The list is left out: write whole numbers from 1 to ${bound}, such as 1, 2, 4.`],
    [has("block") && block > 1, "Window, global and random links count blocks, which take no dilation."],
    [kind === "strided", "Each layer keeps every stride-th position, looks both ways and has no residual."],
    [has("randoms") && randoms, "Random links are the library's own draws of seed 0."],
  ].filter(([holds]) => holds).map(([, text]) => text).join(" ");
}

/** All layers of a scheme, and whether the residual passes positions on: not where the length changes. */
export function stackOf(settings, width) {
  const rule = dilationRule(settings);
  return {
    layers: Array.from({ length: settings.layers }, (_, layer) => layerOf(settings, width, rule(layer))),
    residual: settings.kind !== "strided",
  };
}

/** Whether a token can be decoded at a time. */
export const isCausal = (settings) => settings.kind !== "strided" && (settings.causal || !KINDS[settings.kind].twoWays);

const MORE_LAYERS = 8;
const MOST_LAYERS = 256;

/**
 * How many layers of a rule, which goes on as long as it must, span `length` tokens, and from how many on the first
 * token reaches the last: {count, lands}, which differ where steps skip the first token. lands is false where a few
 * more layers do not help, null where that is not counted. All is null where no number of layers spans so many, and
 * undefined where only drawn links could tell.
 */
export function layersNeeded(settings, width, length) {
  const rule = dilationRule(settings), first = layerOf(settings, width, rule(0)), distance = length - 1;
  if (distance === 0 || seesEverything(first) || first.pattern?.global > 0) return { count: 1, lands: 1 };
  if (lagRuns(first) === null) return undefined;
  const known = new Map();
  let reached = 0, jump = 1, count = 0;
  while (reached < distance && count < LONGEST) {
    const dilation = rule(count);
    if (!known.has(dilation)) known.set(dilation, spanOf(settings, layerOf(settings, width, dilation)));
    reached += known.get(dilation) * jump;
    if (settings.kind === "strided") jump *= settings.stride;
    count++;
  }
  return reached < distance ? null : { count, lands: lands(settings, width, count, distance) };
}

/** How far a layer looks back; with strides, how far from its first to its last source. */
function spanOf(settings, layer) {
  const { ahead, back } = lagBounds(lagRuns(layer));
  return settings.kind === "strided" ? back - ahead : back;
}

/** The first number of layers, from `count` on, of which `distance` is a sum of lags; see `layersNeeded`. */
function lands(settings, width, count, distance) {
  if (settings.kind === "strided") return null;
  const runs = lagRuns(layerOf(settings, width, dilationRule(settings)(0)));
  if (settings.growth === 1 && !readList(settings.list).length && runs.every((run) => run.step === 1)) return count;
  if (distance % stepOfAll(settings, width, count + MORE_LAYERS)) return false;
  let work = 0;
  for (let layers = count; layers <= count + MORE_LAYERS; layers++) {
    const stack = stackOf({ ...settings, layers }, width);
    work += layers > MOST_LAYERS ? Infinity : lagSetWork(stack);
    if (work > AT_ONCE) return null;
    const { seen, first } = lagSet(stack);
    if (seen[distance - first] === 1) return layers;
  }
  return false;
}

/** The greatest divisor of all lags of the first layers: every sum of them is a multiple of it. */
function stepOfAll(settings, width, count) {
  const rule = dilationRule(settings);
  const lagsOf = ({ first, step }) => [Math.abs(first), step];
  const ofLayer = (_, i) => lagRuns(layerOf(settings, width, rule(i))).flatMap(lagsOf);
  return Array.from({ length: Math.min(count, MOST_LAYERS) }, ofLayer).flat().reduce(greatestDivisor);
}
