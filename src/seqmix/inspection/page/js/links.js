// The links of sparse attention: the rules of seqmix's `mixers/links`, number for number, random draws included.
//
// A pattern is {window, global, random}, null where every position sees all before it:
//   window: {size, dilation, block}         the last `size` positions (every `dilation`-th), or the last blocks
//   global: count                           the first `count` positions see all before them and are seen by all
//   random: {count, seed, block} or null    `count` earlier positions (blocks) drawn for each position (block)
// A position always sees itself. Not causal: every link is used both ways.

const MASK = (1n << 64n) - 1n;

/** Two 32-bit halves, [high, low], of the lowest 64 bits of a BigInt. */
const halves = (value) => [Number((value & MASK) >> 32n) | 0, Number(value & 0xffffffffn) | 0];

const STEP = halves(0x9e3779b97f4a7c15n);
const FIRST = halves(0xbf58476d1ce4e5b9n);
const SECOND = halves(0x94d049bb133111ebn);

/** The high 32 bits of the product of two unsigned 32-bit numbers. */
function highProduct(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const other = a0 * b1 + (middle & 0xffff);
  return (a1 * b1 + Math.floor(middle / 65536) + Math.floor(other / 65536)) | 0;
}

/** (x ^ (x >> shift)) * factor over 64 bits, shifts filling up with zeros; in place. */
function stir(x, shift, factor) {
  const [high, low] = x;
  const low2 = low ^ ((low >>> shift) | (high << (32 - shift)));
  const high2 = high ^ (high >>> shift);
  x[1] = Math.imul(low2, factor[1]);
  x[0] = (highProduct(low2, factor[1]) + Math.imul(low2, factor[0]) + Math.imul(high2, factor[1])) | 0;
}

/** The remainder of the SplitMix64 hash of a unit, shifted to 62 bits, by `modulus` (at most 2^21). */
function hashed(offset, unit, modulus) {
  const low = Math.imul(unit, STEP[1]);
  const high = highProduct(unit, STEP[1]) + Math.imul(unit, STEP[0]);
  const sum = (low >>> 0) + (offset[1] >>> 0);
  const x = [(high + offset[0] + (sum > 0xffffffff ? 1 : 0)) | 0, sum | 0];
  stir(x, 30, FIRST);
  stir(x, 27, SECOND);
  const mixedLow = x[1] ^ ((x[1] >>> 31) | (x[0] << 1));
  const mixedHigh = x[0] ^ (x[0] >>> 31);
  const top = mixedHigh >>> 2, bottom = ((mixedLow >>> 2) | (mixedHigh << 30)) >>> 0;
  return ((top % modulus) * 4294967296 + bottom) % modulus;
}

const drawn = new Map();

/**
 * The units that each of the first `units` is linked to, `count` a unit, -1 for none: Floyd's sampling without
 * replacement. Kept, because a slider that moves a window draws nothing anew.
 */
export function draws(random, units) {
  const key = `${random.count} ${random.seed}`;
  const known = drawn.get(key);
  if (known && known.units >= units) return known.picks;
  const { count, seed } = random;
  const offsets = Array.from({ length: count }, (_, draw) =>
    halves(BigInt(seed) * 0xd1342543de82ef95n + BigInt(draw) * 0x2545f4914f6cdd1dn));
  const picks = new Int32Array(units * count);
  for (let unit = 0; unit < units; unit++) {
    const first = unit * count;
    for (let draw = 0; draw < count; draw++) {
      if (unit <= count) {
        picks[first + draw] = unit > draw ? draw : -1;
        continue;
      }
      const top = unit - count + draw;
      const pick = hashed(offsets[draw], unit, top + 1);
      picks[first + draw] = picks.subarray(first, first + draw).includes(pick) ? top : pick;
    }
  }
  if (drawn.size > 3) drawn.clear();
  drawn.set(key, { units, picks });
  return picks;
}

/** The first position that the window of a target holds without gaps. */
const windowBegin = ({ size, dilation, block }, target) => block > 1
  ? Math.max(0, (Math.floor(target / block) - size + 1) * block)
  : dilation > 1 ? target : Math.max(0, target - size + 1);

/** Calls visit(source) for each link of a target to positions at or before it; a source may come more than once. */
function eachSource({ window, global, random }, target, length, visit) {
  for (let source = windowBegin(window, target); source <= target; source++) visit(source);
  if (window.dilation > 1) {
    const taps = Math.min(window.size - 1, Math.floor(target / window.dilation));
    for (let tap = 1; tap <= taps; tap++) visit(target - tap * window.dilation);
  }
  const end = target < global ? target : global;
  for (let source = 0; source < end; source++) visit(source);
  if (random === null) return;
  const first = Math.floor(target / random.block) * random.count;
  const picks = draws(random, Math.ceil(length / random.block));
  for (let draw = first; draw < first + random.count; draw++) {
    for (let i = 0; picks[draw] >= 0 && i < random.block; i++) visit(picks[draw] * random.block + i);
  }
}

/** Uint8Array (length * length), 1 where the target (row) sees the source (column). */
export function patternMatrix(pattern, length, causal) {
  const matrix = new Uint8Array(length * length);
  for (let target = 0; target < length; target++) {
    const link = (source) => {
      matrix[target * length + source] = 1;
      if (!causal) matrix[source * length + target] = 1;
    };
    if (pattern === null) for (let source = 0; source <= target; source++) link(source);
    else eachSource(pattern, target, length, link);
  }
  return matrix;
}

/** A pattern as the library reads it, such as "window(4, dilation=2) | global_(1)". */
export function patternText(pattern) {
  if (pattern === null) return "full()";
  const call = (name, first, ...options) => `${name}(${[first, ...options.flat()].join(", ")})`;
  const option = (name, value, usual) => (value === usual ? [] : [`${name}=${value}`]);
  const { window: { size, dilation, block }, global, random } = pattern, blocks = (value) => option("block", value, 1);
  const texts = [call("window", size, option("dilation", dilation, 1), blocks(block))];
  if (global) texts.push(call("global_", global));
  if (random) texts.push(call("random", random.count, option("seed", random.seed, 0), blocks(random.block)));
  return texts.join(" | ");
}

/** Whether a position sees no further than its window. */
export const isBounded = (pattern) => pattern !== null && pattern.global === 0 && pattern.random === null;

/** The most positions between a position and the first one in its window, itself included. */
const lookback = ({ size, dilation, block }) => (block > 1 ? size * block : (size - 1) * dilation + 1);

/** The span of what one position sees in its window. */
export function windowSpan(window, causal) {
  if (causal) return lookback(window);
  return window.block > 1 ? (2 * window.size - 1) * window.block : 2 * lookback(window) - 1;
}

/** How many positions one position sees in its window. */
export const windowSeen = (window, causal) => (causal ? window.size : 2 * window.size - 1) * window.block;

/** The latest positions that causal attention must keep; null for all. */
export const ring = (pattern) => pattern === null || pattern.random ? null : lookback(pattern.window);

/** The first positions that causal attention must keep for good besides. */
export const kept = (pattern) => (ring(pattern) === null ? 0 : pattern.global);

/** How many positions of first ... end - 1 a dilated window shows to a target behind them. */
function inGaps({ size, dilation }, target, first, end) {
  if (dilation === 1 || first >= end) return 0;
  const nearest = Math.max(1, Math.ceil((target - end + 1) / dilation));
  return Math.max(0, Math.min(size - 1, Math.floor((target - first) / dilation)) - nearest + 1);
}

/** How many positions at or before the target it sees, itself included. */
export function linksOf(pattern, target, length = target + 1) {
  if (pattern === null) return target + 1;
  const { window, global, random } = pattern;
  if (target < global) return target + 1;
  const begin = windowBegin(window, target);
  let count = target - begin + 1 + Math.min(global, begin) + inGaps(window, target, global, begin);
  if (random === null) return count;
  const unit = Math.floor(target / random.block) * random.count;
  const picks = draws(random, Math.ceil(length / random.block));
  for (let draw = unit; draw < unit + random.count; draw++) {
    if (picks[draw] < 0) continue;
    const first = Math.max(global, picks[draw] * random.block);
    const end = Math.min(begin, (picks[draw] + 1) * random.block);
    if (end > first) count += end - first - inGaps(window, target, first, end);
  }
  return count;
}

/** Links over sequences of each of the lengths (ascending), pairs of target and source of one head. */
export function countLinks(pattern, lengths, causal) {
  if (!causal) return countLinks(pattern, lengths, true).map((count, i) => 2 * count - lengths[i]);
  if (pattern === null) return lengths.map((length) => (length * (length + 1)) / 2);
  const longest = lengths[lengths.length - 1];
  let total = 0, target = 0;
  return lengths.map((length) => {
    for (; target < length; target++) total += linksOf(pattern, target, longest);
    return total;
  });
}
