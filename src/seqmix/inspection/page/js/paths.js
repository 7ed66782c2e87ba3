// Searches in the graph that a stack of mixing matrices makes: positions are nodes, links carry |weights|, layer over
// layer. Staying in place is free and has the weight 1 (the residual). The same definitions as seqmix.inspection.graph.
//
// A layer is a Float32Array of time x time weights, never negative, row by row: weights[target * time + source].

/** The largest |weight| over some heads of a block: what a link of the whole layer can carry. */
export function strongestHead(block, heads) {
  const weights = new Float32Array(block.time * block.source);
  for (const head of heads) {
    for (let target = 0; target < block.time; target += 1) {
      const row = block.row(head, target);
      const start = target * block.source;
      for (let source = 0; source < row.length; source += 1) {
        const weight = Math.abs(row[source]);
        if (weight > weights[start + source]) weights[start + source] = weight;
      }
    }
  }
  return weights;
}

/** The largest weight of each row. */
export function rowLargest(weights, time) {
  const largest = new Float32Array(time);
  for (let target = 0; target < time; target += 1) {
    for (let at = target * time; at < (target + 1) * time; at += 1) {
      if (weights[at] > largest[target]) largest[target] = weights[at];
    }
  }
  return largest;
}

/** The weights that are above `threshold` times the largest of their row; the others become 0. */
export function keepStrong(weights, time, threshold, largest = rowLargest(weights, time)) {
  const kept = new Float32Array(weights.length);
  for (let target = 0; target < time; target += 1) {
    const least = threshold * largest[target];
    for (let at = target * time; at < (target + 1) * time; at += 1) {
      if (weights[at] > least) kept[at] = weights[at];
    }
  }
  return kept;
}

/** The links among `count` positions from `start` on, as a smaller layer. */
export function windowOf(weights, time, start, count) {
  const part = new Float32Array(count * count);
  for (let target = 0; target < count; target += 1) {
    const from = (start + target) * time + start;
    part.set(weights.subarray(from, from + count), target * count);
  }
  return part;
}

/** The fewest mixers a message needs from `source` to each position through all layers; Infinity where none leads. */
export function fewestSteps(layers, time, source) {
  let fewest = new Array(time).fill(Infinity);
  fewest[source] = 0;
  for (const weights of layers) {
    const next = fewest.slice();
    for (let from = 0; from < time; from += 1) {
      if (fewest[from] === Infinity) continue;
      for (let target = 0; target < time; target += 1) {
        if (weights[target * time + from] > 0) next[target] = Math.min(next[target], fewest[from] + 1);
      }
    }
    fewest = next;
  }
  return fewest;
}

/** The fewest mixers from `source` to `target`, null where the layers do not connect them. */
export function steps(layers, time, source, target) {
  const fewest = fewestSteps(layers, time, source)[target];
  return fewest === Infinity ? null : fewest;
}

/** Whether each position holds something of `source` after 0, 1, ... all layers: one Uint8Array each. */
export function reached(layers, time, source) {
  const all = [new Uint8Array(time)];
  all[0][source] = 1;
  for (const weights of layers) {
    const before = all.at(-1);
    const after = before.slice();
    for (let target = 0; target < time; target += 1) {
      for (let from = 0; from < time && !after[target]; from += 1) {
        if (before[from] && weights[target * time + from] > 0) after[target] = 1;
      }
    }
    all.push(after);
  }
  return all;
}

/** Whether each position below 0, 1, ... all layers can still arrive at `target` at the top: one Uint8Array each. */
export function leading(layers, time, target) {
  const all = [new Uint8Array(time)];
  all[0][target] = 1;
  for (let layer = layers.length - 1; layer >= 0; layer -= 1) {
    const above = all[0];
    const below = above.slice();
    for (let from = 0; from < time; from += 1) {
      for (let to = 0; to < time && !below[from]; to += 1) {
        if (above[to] && layers[layer][to * time + from] > 0) below[from] = 1;
      }
    }
    all.unshift(below);
  }
  return all;
}

/**
 * The path with the greatest product of weights from `source` to `target`, residuals left out.
 * @returns {{layer: number, source: number, target: number, weight: number}[] | null} null where no path leads there
 */
export function strongestPath(layers, time, source, target) {
  let best = new Float64Array(time).fill(-Infinity);
  best[source] = 0;
  const cameFrom = [];
  for (const weights of layers) {
    const next = best.slice();
    const from = new Int32Array(time).fill(-1);
    const largest = rowLargest(weights, time);
    for (let to = 0; to < time; to += 1) {
      const most = Math.log(largest[to]);
      for (let at = 0; at < time; at += 1) {
        const weight = weights[to * time + at];
        if (weight > 0 && best[at] + most > next[to] && best[at] + Math.log(weight) > next[to]) {
          next[to] = best[at] + Math.log(weight);
          from[to] = at;
        }
      }
    }
    cameFrom.push(from);
    best = next;
  }
  if (best[target] === -Infinity) return null;
  const path = [];
  let at = target;
  for (let layer = layers.length - 1; layer >= 0; layer -= 1) {
    const from = cameFrom[layer][at];
    if (from < 0) continue;
    path.unshift({ layer, source: from, target: at, weight: layers[layer][at * time + from] });
    at = from;
  }
  return path;
}
