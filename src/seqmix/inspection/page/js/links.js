// The links of sparse attention: the rules of seqmix's `mixers/links`, number for number, random draws included.
//
// A pattern is a list of parts, null where every position sees all before it:
//   {type: "window", size, dilation, block}   the last `size` positions (every `dilation`-th), or the last blocks
//   {type: "global", count}                   the first `count` positions see all before them and are seen by all
//   {type: "random", count, seed, block}      `count` earlier positions (blocks) drawn for each position (block)

/** @typedef {{type: string, size?: number, dilation?: number, block?: number, count?: number, seed?: number}} Part */

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
export function draws(part, units) {
  const key = `${part.count} ${part.seed}`;
  const known = drawn.get(key);
  if (known && known.units >= units) return known.picks;
  const { count } = part;
  const offsets = Array.from({ length: count }, (_, draw) =>
    halves(BigInt(part.seed) * 0xd1342543de82ef95n + BigInt(draw) * 0x2545f4914f6cdd1dn));
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

/** The first position that a window shows to a target. */
const windowBegin = (part, target) => part.block > 1
  ? Math.max(0, (Math.floor(target / part.block) - part.size + 1) * part.block)
  : Math.max(0, target - part.size + 1);

/** Calls visit(source) for the links from positions at or before a target; a source may come more than once. */
function eachSource(part, target, length, visit) {
  if (part.type === "window" && part.dilation > 1) {
    for (let tap = 0; tap < part.size && target - tap * part.dilation >= 0; tap++) visit(target - tap * part.dilation);
  } else if (part.type === "window") {
    for (let source = windowBegin(part, target); source <= target; source++) visit(source);
  } else if (part.type === "global") {
    const end = target < part.count ? target + 1 : part.count;
    for (let source = 0; source < end; source++) visit(source);
  } else {
    const unit = Math.floor(target / part.block), picks = draws(part, Math.ceil(length / part.block));
    for (let draw = 0; draw < part.count; draw++) {
      const pick = picks[unit * part.count + draw];
      for (let i = 0; pick >= 0 && i < part.block; i++) visit(pick * part.block + i);
    }
  }
}

/** Uint8Array (length * length), 1 where the target (row) sees the source (column). */
export function patternMatrix(parts, length, causal) {
  const matrix = new Uint8Array(length * length);
  for (let target = 0; target < length; target++) {
    const link = (source) => {
      matrix[target * length + source] = 1;
      if (!causal) matrix[source * length + target] = 1;
    };
    link(target);
    if (parts === null) for (let source = 0; source < target; source++) link(source);
    else for (const part of parts) eachSource(part, target, length, link);
  }
  return matrix;
}

/** A pattern as the library reads it, such as "window(4, dilation=2) | global_(1)". */
export const patternText = (parts) => parts === null ? "full()" : parts.map((part) => {
  const { type, size, count, seed, dilation, block } = part;
  const options = Object.entries({ dilation, seed, block })
    .filter(([key, value]) => value !== undefined && value !== (key === "seed" ? 0 : 1))
    .map(([key, value]) => `, ${key}=${value}`).join("");
  return `${type === "global" ? "global_" : type}(${size ?? count}${options})`;
}).join(" | ");

/** The most positions between a position and the first one it sees, itself included; null for no bound. */
export const lookback = (part) => part.type !== "window" ? null
  : part.block > 1 ? part.size * part.block : (part.size - 1) * part.dilation + 1;

/** The latest positions that causal attention must keep besides the first ones that it keeps for good; null for all. */
export function ring(parts) {
  if (parts === null || parts.some((part) => part.type === "random")) return null;
  return Math.max(1, ...parts.filter((part) => part.type === "window").map(lookback));
}

/** The first positions that causal attention must keep for good. */
export const kept = (parts) => parts === null || ring(parts) === null ? 0
  : Math.max(0, ...parts.filter((part) => part.type === "global").map((part) => part.count));

const lcm = (a, b) => {
  let [x, y] = [a, b];
  while (y) [x, y] = [y, x % y];
  return (a / x) * b;
};

/** How far back the positions stand that a target sees, a set for each kind of target; null for no bound. */
export function lagsByTarget(parts, causal) {
  if (parts === null || parts.some((part) => lookback(part) === null)) return null;
  if (parts.length === 1 && parts[0].block === 1) {
    const [{ size, dilation }] = parts;
    const back = Array.from({ length: size }, (_, tap) => tap * dilation);
    return [causal ? back : [...back.slice(1).map((lag) => -lag), ...back]];
  }
  const span = Math.max(...parts.map(lookback));
  const kinds = parts.map((part) => part.block).reduce(lcm, 1);
  const sees = (later, earlier) => later === earlier || parts.some((part) => part.block > 1
    ? Math.floor(later / part.block) - Math.floor(earlier / part.block) < part.size
    : later - earlier < part.size * part.dilation && (later - earlier) % part.dilation === 0);
  return Array.from({ length: kinds }, (_, kind) => {
    const target = Math.ceil(span / kinds) * kinds + kind, lags = [];
    for (let lag = causal ? 0 : -span; lag <= span && lag <= target; lag++) {
      if (sees(Math.max(target, target - lag), Math.min(target, target - lag))) lags.push(lag);
    }
    return lags;
  });
}

/** How many positions at or before the target it sees, itself included. */
export function linksOf(parts, target) {
  if (parts === null) return target + 1;
  const seen = new Set([target]);
  for (const part of parts) eachSource(part, target, target + 1, (source) => source <= target && seen.add(source));
  return seen.size;
}

const triangle = (length, window) => window >= length ? (length * (length + 1)) / 2
  : (window * (window + 1)) / 2 + (length - window) * window;

/** Links up to each of the lengths (ascending), (target, source) pairs of one head; exact below 2^53. */
export function countLinks(parts, lengths, causal) {
  if (!causal) return countLinks(parts, lengths, true).map((count, i) => 2 * count - lengths[i]);
  if (parts === null) return lengths.map((length) => triangle(length, length));
  const [only] = parts;
  if (parts.length === 1 && only.type === "window" && only.dilation === 1 && only.block === 1) {
    return lengths.map((length) => triangle(length, only.size));
  }
  return countOneByOne(parts, lengths);
}

/** As countLinks, target by target: dense windows and global positions by their ends, the others listed. */
function countOneByOne(parts, lengths) {
  const dense = parts.filter((part) => part.type === "window" && part.dilation === 1);
  const listed = parts.filter((part) => (part.type === "window" && part.dilation > 1) || part.type === "random");
  const globals = Math.max(0, ...parts.filter((part) => part.type === "global").map((part) => part.count));
  const longest = lengths[lengths.length - 1];
  // A mark holds the last target that has counted the source.
  const marks = listed.length > 1 ? new Int32Array(longest).fill(-1) : null;
  const counts = [];
  let total = 0;
  for (let target = 0, next = 0; next < lengths.length; target++) {
    while (next < lengths.length && lengths[next] === target) {
      counts.push(total);
      next++;
    }
    if (target < globals) {
      total += target + 1;
      continue;
    }
    const begin = dense.reduce((first, part) => Math.min(first, windowBegin(part, target)), target);
    total += target - begin + 1 + Math.min(globals, begin);
    for (const part of next < lengths.length ? listed : []) {
      eachSource(part, target, longest, (source) => {
        if (source >= begin || source < globals || (marks && marks[source] === target)) return;
        if (marks) marks[source] = target;
        total++;
      });
    }
  }
  return counts;
}
