// One matrix as it is looked at: raw or with rows that sum to 1, each value with how far it can be off.

/**
 * @typedef {{values: Float32Array, time: number, source: number,
 *   error: (target: number, source: number) => number}} Weights
 */

/**
 * The matrix of a head. Normalised: |M| with rows that sum to 1; a row of zeros stays zero.
 * A raw value is true to half a step of the quantisation. A normalised one, w / sum, is true to
 * (step + (w / sum) * n * step) / sum: its own error and that of the n values of its row.
 * @returns {Weights}
 */
export function weightsOf(block, head, normalised) {
  const { time, source } = block;
  const values = new Float32Array(time * source);
  const errors = new Float64Array(time); // of a raw value, or of a normalised 0
  const growth = new Float64Array(time); // of the error with the normalised value
  for (let target = 0; target < time; target += 1) {
    const row = block.row(head, target);
    const step = block.step(head, target);
    let sum = 0;
    for (const weight of row) sum += Math.abs(weight);
    const scale = normalised && sum > 0 ? 1 / sum : 1;
    for (let at = 0; at < row.length; at += 1) {
      values[target * source + at] = normalised ? Math.abs(row[at]) * scale : row[at];
    }
    errors[target] = step * scale;
    growth[target] = normalised ? held(block, target) * step * scale : 0;
  }
  const isStored = (target, at) =>
    block.lags ? block.lags.includes(target - at) : !(block.causal && at > target);
  const error = (target, at) =>
    isStored(target, at) ? errors[target] + growth[target] * values[target * source + at] : 0;
  return { values, time, source, error };
}

/** How many values of a row the page holds, also those that were rounded to 0. */
function held(block, target) {
  return block.lags?.length ?? (block.causal ? Math.min(target + 1, block.source) : block.source);
}

/** The first `time` rows and columns of what one matrix has more than another. */
export function difference(one, other) {
  const time = Math.min(one.time, other.time);
  const values = new Float32Array(time * time);
  for (let target = 0; target < time; target += 1) {
    for (let source = 0; source < time; source += 1) {
      const value = one.values[target * one.source + source] - other.values[target * other.source + source];
      values[target * time + source] = value;
    }
  }
  const error = (target, source) => one.error(target, source) + other.error(target, source);
  return { values, time, source: time, error };
}

/** The share of the weight that stands elsewhere: sum |A - B| / (sum |A| + sum |B|) over the positions both have. */
export function moved(one, other) {
  const time = Math.min(one.time, other.time);
  let apart = 0;
  let together = 0;
  for (let target = 0; target < time; target += 1) {
    for (let source = 0; source < time; source += 1) {
      const [a, b] = [one.values[target * one.source + source], other.values[target * other.source + source]];
      apart += Math.abs(a - b);
      together += Math.abs(a) + Math.abs(b);
    }
  }
  return together > 0 ? apart / together : 0;
}

/** A value in as many digits as are true, with its error: "0.0123 ± 0.0001"; all digits where it is exact. */
export function withError(value, error) {
  if (error === 0) return String(Number(value.toPrecision(7)));
  const greatest = Math.max(Math.abs(value), error);
  const power = greatest < 1e-3 ? Math.floor(Math.log10(greatest)) : 0;
  const unit = 10 ** power;
  const digits = Math.min(12, Math.max(0, 1 - Math.floor(Math.log10(error / unit))));
  const last = 10 ** -digits;
  const bound = Math.ceil(error / unit / last + 0.5) * last; // half a last digit: the value is rounded too
  const suffix = power ? `e${power}` : "";
  return `${(value / unit).toFixed(digits)}${suffix} ± ${bound.toFixed(digits)}${suffix}`;
}
