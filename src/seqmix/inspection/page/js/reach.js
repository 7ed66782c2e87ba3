// How far a stack of layers sees: by the formula, by the set of lags, and counted from links.
//
// A stack is {layers, residual}: the residual passes every position on, so lag 0 is always among the lags. A stack
// with strides has none, because its layers do not keep the length.

import { lagBounds, lagRuns, linkMatrix, receptiveField, seesEverything } from "page/schemes";

/** Work that a picture may wait for, and the most that is done at all: additions of a set of lags. */
export const AT_ONCE = 1e6;
export const AT_ALL = 3e8;

/** The product of the strides below each layer: how many inputs one step of the layer's sources is. */
export function jumps(layers) {
  let jump = 1;
  return layers.map((layer) => {
    const here = jump;
    jump *= layer.stride ?? 1;
    return here;
  });
}

/** 1 + the sum of (field - 1) times the strides below; null for no bound. */
export function stackField(layers) {
  const fields = layers.map(receptiveField), scale = jumps(layers);
  return fields.includes(null) ? null : fields.reduce((sum, field, i) => sum + (field - 1) * scale[i], 1);
}

/** The runs of lags of each layer counted in inputs, with the residual's; null where one has no bound. */
function stackRuns({ layers, residual }) {
  const scale = jumps(layers);
  const runs = layers.map((layer, i) => lagRuns(layer)?.map(({ first, step, count }) =>
    ({ first: first * scale[i], step: step * scale[i], count })) ?? null);
  if (runs.includes(null)) return null;
  return residual ? runs.map((of) => [...of, { first: 0, step: 1, count: 1 }]) : runs;
}

/** Whether `length` inputs hold all that the target could be reached from; false where there is no bound. */
export function holdsField(stack, length, target) {
  const layers = stackRuns(stack);
  if (layers === null) return false;
  const bounds = layers.map(lagBounds), sum = (key) => bounds.reduce((total, bound) => total + bound[key], 0);
  const strides = stack.layers.reduce((product, layer) => product * (layer.stride ?? 1), 1);
  return target * strides - sum("back") >= 0 && target * strides - sum("ahead") < length;
}

/** How many additions `lagSet` takes. */
export function lagSetWork(stack) {
  let width = 1, work = 0;
  for (const runs of stackRuns(stack) ?? []) {
    const { ahead, back } = lagBounds(runs);
    width += back - ahead;
    work += width * runs.length;
  }
  return work;
}

/**
 * The lags that reach an output through the whole stack: {seen, first}, with seen[i] 1 where lag first + i does.
 * Null for no bound. A run of lags costs one pass: a position is reached where the last reached one of its residue
 * class is less than `count` steps away.
 */
export function lagSet(stack) {
  const layers = stackRuns(stack);
  if (layers === null) return null;
  let seen = Uint8Array.of(1), first = 0;
  for (const runs of layers) {
    const { ahead, back } = lagBounds(runs), width = seen.length + back - ahead;
    const wider = new Uint8Array(width), since = new Int32Array(width);
    for (const run of runs) {
      const offset = run.first - ahead, { step, count } = run;
      for (let i = 0; i < width; i++) {
        const from = i - offset;
        const isHere = from >= 0 && from < seen.length && seen[from] === 1;
        const away = isHere ? 0 : i >= step ? since[i - step] + 1 : count;
        since[i] = away;
        if (away < count) wider[i] = 1;
      }
    }
    seen = wider;
    first += ahead;
  }
  return { seen, first };
}

/** How many positions of the field can really reach the output; null for no bound. */
export function stackSeen(stack) {
  const set = lagSet(stack);
  return set && set.seen.reduce((sum, here) => sum + here, 0);
}

/** The links of each layer over `length` inputs, [{targets, sources, cells}], the first layer first. */
export function stackLinks(layers, length) {
  let count = length;
  return layers.map((layer) => {
    const matrix = knownMatrix(layer, count);
    count = matrix.targets;
    return matrix;
  });
}

const keptMatrices = new Map();
const KEPT = 24;

/** The links of a layer, kept for the next redraw, which mostly asks for the same. */
function knownMatrix(layer, length) {
  const key = JSON.stringify([layer, length]);
  const matrix = keptMatrices.get(key) ?? linkMatrix(layer, length);
  keptMatrices.delete(key);
  keptMatrices.set(key, matrix);
  if (keptMatrices.size > KEPT) keptMatrices.delete(keptMatrices.keys().next().value);
  return matrix;
}

const lists = new WeakMap();

/** The links of a matrix target by target: those of target t are sources[starts[t]] ... sources[starts[t + 1] - 1]. */
export function linkList(matrix) {
  if (!lists.has(matrix)) {
    const { cells } = matrix, starts = new Int32Array(matrix.targets + 1);
    let count = 0;
    for (let i = 0; i < cells.length; i++) count += cells[i];
    const sources = new Int32Array(count);
    count = 0;
    for (let target = 0, i = 0; target < matrix.targets; target++) {
      for (let source = 0; source < matrix.sources; source++, i++) if (cells[i]) sources[count++] = source;
      starts[target + 1] = count;
    }
    lists.set(matrix, { starts, sources });
  }
  return lists.get(matrix);
}

/**
 * The positions whose values reach `target` of the last layer: a Uint8Array for the inputs and one above each layer
 * (the last one holds the target alone).
 */
export function cone(matrices, target, residual) {
  const last = matrices[matrices.length - 1];
  const levels = [Uint8Array.from({ length: last.targets }, (_, position) => Number(position === target))];
  for (const matrix of [...matrices].reverse()) {
    const { starts, sources } = linkList(matrix), above = levels[0];
    const below = residual ? above.slice() : new Uint8Array(matrix.sources);
    let rest = below.reduce((sum, mark) => sum + 1 - mark, 0);
    // From the last target down: where each sees all before it, the first one found settles everything.
    for (let t = matrix.targets - 1; t >= 0 && rest > 0; t--) {
      if (!above[t]) continue;
      for (let i = starts[t]; i < starts[t + 1]; i++) {
        rest -= 1 - below[sources[i]];
        below[sources[i]] = 1;
      }
    }
    levels.unshift(below);
  }
  return levels;
}

/** What was counted: how many are marked, and the span from the first to the last of them. */
export function counted(marks) {
  const first = marks.indexOf(1);
  return { seen: marks.reduce((sum, mark) => sum + mark, 0), span: first < 0 ? 0 : marks.lastIndexOf(1) - first + 1 };
}

/**
 * The fewest layers, in order, through which each position reaches the target; -1 where it does not. Passing a layer
 * through the residual costs nothing.
 */
export function fewestLayers(matrices, target) {
  const never = matrices.length + 1, fewest = new Int32Array(matrices[0].sources).fill(never);
  fewest[target] = 0;
  for (const matrix of [...matrices].reverse()) {
    const { starts, sources } = linkList(matrix), before = fewest.slice();
    const most = before.reduce((greatest, count) => Math.max(greatest, count), 0);
    for (let t = 0; t < matrix.targets; t++) {
      const count = before[t] + 1;
      if (count >= most) continue;
      for (let i = starts[t]; i < starts[t + 1]; i++) if (fewest[sources[i]] > count) fewest[sources[i]] = count;
    }
  }
  return fewest.map((count) => (count === never ? -1 : count));
}

const TARGETS = 16, MARGIN = 256;

/** How far back one layer looks; it has a bound. */
const lookingBack = (layer) => lagBounds(lagRuns(layer)).back;

/** As the library's: the fewest layers through which a position `distance` back reaches an output; null if none do. */
export function pathLength(layers, distance) {
  if (distance && layers.some(seesEverything)) return 1;
  if (distance && stackField(layers) === null) return hops(layers, distance);
  if (!distance) return 1;
  const spans = layers.map(lookingBack).sort((a, b) => b - a);
  let reached = 0;
  for (let count = 1; count <= spans.length; count++) {
    reached += spans[count - 1];
    if (reached >= distance) return count;
  }
  return null;
}

/** Where links are drawn at random or global: the worst of several targets, by their links. */
function hops(layers, distance) {
  const length = distance + Math.min(distance, MARGIN) + 1;
  const matrices = stackLinks(layers, length), count = Math.min(TARGETS, length - distance);
  let worst = 0;
  for (let i = 0; i < count; i++) {
    const target = count === 1 ? distance : roundEven(distance + (i * (length - 1 - distance)) / (count - 1));
    const fewest = fewestLayers(matrices, target)[target - distance];
    if (fewest < 0) return null;
    worst = Math.max(worst, fewest);
  }
  return worst;
}

/** Rounds a half to the even neighbour, as torch does. */
function roundEven(x) {
  const below = Math.floor(x), half = x - below;
  return half === 0.5 ? below + (below % 2) : Math.round(x);
}
