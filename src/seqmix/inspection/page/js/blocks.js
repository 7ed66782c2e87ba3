// The matrices of the page, decoded when they are first looked at.

/**
 * Matrices (heads, time, source) whose entries stand for whole codes times a step of their row, or are exact.
 *
 * meta.form: "lags", one value for each lag and head, the same in every row; or "rows", codes by row: of all sources,
 * of those up to the target (causal), or of the given lags alone.
 */
export class Matrix {
  constructor(meta, bytes) {
    Object.assign(this, { heads: meta.heads, time: meta.time, source: meta.source, form: meta.form });
    this.lags = meta.lags ?? null;
    this.causal = meta.causal;
    this.exact = meta.bits === 32;
    if (this.exact) {
      this.values = new Float32Array(bytes);
      return;
    }
    const scales = meta.form === "lags" ? meta.heads : meta.heads * meta.time;
    this.scales = new Float32Array(bytes, 0, scales);
    const codes = joined(new Uint8Array(bytes, 4 * scales), meta.bits);
    this.largest = 2 ** (meta.bits - 1) - 1;
    if (meta.form === "lags") {
      const each = codes.length / meta.heads;
      this.values = Float32Array.from(codes, (code, at) => (code / this.largest) * this.scales[Math.floor(at / each)]);
      return;
    }
    this.codes = codes;
    this.starts = this.lags ? null : rowStarts(meta);
    this.perHead = this.lags ? meta.time * this.lags.length : this.starts[meta.time];
  }

  /** M[head, target, source]. */
  value(head, target, source) {
    const place = this.lags ? this.lags.indexOf(target - source) : source;
    if (this.form === "lags") return place < 0 ? 0 : this.values[head * this.lags.length + place];
    if (place < 0) return 0;
    if (!this.lags && this.causal && source > target) return 0;
    const start = this.lags ? target * this.lags.length : this.starts[target];
    return (this.codes[head * this.perHead + start + place] / this.largest) * this.scales[head * this.time + target];
  }

  /** How far a value of this row may be from the true one. */
  step(head, target) {
    if (this.exact) return 0;
    return this.scales[this.form === "lags" ? head : head * this.time + target] / this.largest / 2;
  }

  /** Float32Array of the whole row. */
  row(head, target) {
    const row = new Float32Array(this.source);
    if (this.lags) {
      const count = this.lags.length;
      const scale = this.form === "lags" ? 1 : this.scales[head * this.time + target] / this.largest;
      const from = this.form === "lags" ? head * count : head * this.perHead + target * count;
      const numbers = this.form === "lags" ? this.values : this.codes;
      for (let index = 0; index < count; index += 1) {
        const source = target - this.lags[index];
        if (source >= 0 && source < this.source) row[source] = numbers[from + index] * scale;
      }
      return row;
    }
    const scale = this.scales[head * this.time + target] / this.largest;
    const from = head * this.perHead + this.starts[target];
    const count = this.starts[target + 1] - this.starts[target];
    for (let source = 0; source < count; source += 1) row[source] = this.codes[from + source] * scale;
    return row;
  }

  /** The largest |M| of a head. */
  max(head) {
    this.maxima ??= new Map();
    if (!this.maxima.has(head)) {
      let largest = 0;
      for (let target = 0; target < this.time; target += 1) {
        for (const value of this.row(head, target)) largest = Math.max(largest, Math.abs(value));
      }
      this.maxima.set(head, largest);
    }
    return this.maxima.get(head);
  }
}

/** Where each row begins among the codes of a head, and where the last ends. */
function rowStarts(meta) {
  const starts = new Uint32Array(meta.time + 1);
  for (let target = 0; target < meta.time; target += 1) {
    starts[target + 1] = starts[target] + (meta.causal ? Math.min(target + 1, meta.source) : meta.source);
  }
  return starts;
}

/** Whole codes from planes of bytes: the low bytes of all, then the high bytes, where there are two. */
function joined(bytes, bits) {
  if (bits <= 8) return new Int8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = bytes.length / 2;
  const codes = new Int16Array(count);
  for (let index = 0; index < count; index += 1) codes[index] = bytes[index] | (bytes[count + index] << 8);
  return codes;
}

async function inflated(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/**
 * A function from the id of a block to a promise of its Matrix; each is decoded once.
 * @param {Object} metas what is said of each block, by id.
 * @param {function(string): string} textOf the packed text of a block.
 */
export function blockReader(metas, textOf) {
  const known = new Map();
  return (id) => {
    if (!known.has(id)) known.set(id, inflated(textOf(id)).then((bytes) => new Matrix(metas[id], bytes)));
    return known.get(id);
  };
}
