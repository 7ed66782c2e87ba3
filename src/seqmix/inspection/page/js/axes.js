/** Axes of a chart: from values to 0..1, with ticks that people can read. */

/**
 * @typedef {object} Axis
 * @property {string} label
 * @property {string} [unit]
 * @property {boolean} [log]
 * @property {number} [base] 2: the ticks of a log axis are powers of two.
 * @property {boolean} [zero] The axis shows 0; a log axis then counts log(1 + value).
 * @property {boolean} [whole] Values are whole numbers, and so are the ticks.
 * @property {number} [decades] How far below its greatest value a log axis of values goes; 8 unless told.
 * @property {(value: number) => string} [show] How a value is written at a tick and in the read-out.
 */

/**
 * The scale that fits `values` (what is not finite, or not above 0 on a log axis, is left out).
 *
 * @param {number[]} values
 * @param {Axis} axis
 * @param {number} room How many ticks have room.
 * @param {boolean} rounded Whether the ends move out to a tick, as a value axis does.
 * @returns {{low: number, high: number, to: (value: number) => number, ticks: number[]}} `to` is 0 at low, 1 at high.
 */
export function scale(values, axis, room, rounded) {
  const shifted = axis.log && axis.zero ? 1 : 0;
  const isShown = (value) => Number.isFinite(value) && (!axis.log || value + shifted > 0);
  let [low, high] = ends(values.filter(isShown), axis);
  if (axis.log) {
    if (!shifted) low = Math.max(low, high / 10 ** (axis.decades ?? (rounded ? 8 : Infinity)));
    if (rounded && !shifted) [low, high] = roundedLogEnds(low, high);
    const bottom = Math.log(low + shifted);
    const span = Math.log(high + shifted) - bottom;
    const to = (value) => (value + shifted > 0 ? (Math.log(value + shifted) - bottom) / span : -Infinity);
    return { low, high, to, ticks: logTicks(low, high, axis, room) };
  }
  const step = niceStep(Math.max((high - low) / room, axis.whole ? 1 : 0));
  if (rounded) {
    low = Math.floor(low / step + 1e-9) * step;
    high = Math.ceil(high / step - 1e-9) * step;
  }
  const to = (value) => (value - low) / (high - low);
  return { low, high, to, ticks: linearTicks(low, high, step) };
}

function ends(values, axis) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) [low, high] = axis.log ? [1, 10] : [0, 1];
  if (axis.zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (low < high) return [low, high];
  if (axis.log && !axis.zero) return [low / 2, high * 2];
  return low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
}

/** Whole decades where there are several, else the next of 1, 2, 5. */
function roundedLogEnds(low, high) {
  const digits = high / low >= 100 ? [1] : [1, 2, 5];
  const near = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power += 1) {
    for (const digit of digits) near.push(digit * 10 ** power);
  }
  const slack = 1 + 1e-9;
  return [near.findLast((value) => value <= low * slack), near.find((value) => value * slack >= high)];
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([1, 2, 5].find((digit) => digit * power >= least * (1 - 1e-9)) ?? 10);
}

function linearTicks(low, high, step) {
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) ticks.push(k * step);
  return ticks;
}

/** The densest set of round values that has room: 1, 2, 5 of each decade, 1 of each, or one of several decades. */
function logTicks(low, high, axis, room) {
  const slack = 1 + 1e-9;
  const within = (value) => value * slack >= low && value <= high * slack;
  const zero = axis.zero ? [0] : [];
  const base = axis.base ?? 10;
  const from = axis.zero && low <= 0 ? 0 : Math.floor(Math.log(low) / Math.log(base));
  const until = Math.ceil(Math.log(high) / Math.log(base));
  const every = (digits, stride) => {
    const ticks = [...zero];
    for (let power = Math.ceil(from / stride) * stride; power <= until; power += stride) {
      for (const digit of digits) if (within(digit * base ** power)) ticks.push(digit * base ** power);
    }
    return ticks;
  };
  for (const digits of base === 10 ? [[1, 2, 5], [1, 3]] : []) {
    const ticks = every(digits, 1);
    if (ticks.length <= room && ticks.length > 1) return ticks;
  }
  for (let stride = 1; ; stride += 1) {
    const ticks = every([1], stride);
    if (ticks.length <= Math.max(room, 2)) return ticks.length > 1 ? ticks : [low, high];
  }
}

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** A tick in few characters: 0.05, 1 500, 20 K, 10⁻⁷. */
export function tickLabel(value, axis) {
  if (axis.show) return axis.show(value);
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (axis.base === 2) return String(value);
  for (const [unit, name] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e4, " K"]]) {
    const scaled = unit === 1e4 ? 1e3 : unit;
    if (size >= unit * (1 - 1e-9)) return `${Number((value / scaled).toPrecision(3))}${name}`;
  }
  if (size >= 9e-4) return String(Number(value.toPrecision(3)));
  const power = Math.floor(Math.log10(size) + 1e-9);
  const digits = Number((value / 10 ** power).toPrecision(2));
  const raised = [...String(-power)].map((digit) => SUPERSCRIPTS[Number(digit)]).join("");
  return digits === 1 ? `10⁻${raised}` : `${digits}·10⁻${raised}`;
}
