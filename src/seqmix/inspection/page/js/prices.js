// What a layer costs: the formulas of the library's mixers, for one row of float32 numbers.
//
// A price is {parameters, product, other, state}: trainable numbers, FLOPs of products and convolutions, of the rest,
// and bytes of the state that decoding keeps after so many positions (0 for mixers that are not causal).

import { countLinks, kept, linksOf, ring } from "page/links";
import { channelGroups, positionsOut } from "page/schemes";

const SIZE = 4;
const BOOKKEEPING = 16;
const SOFTMAX_FLOPS = 5;
const NORM_FLOPS = 7;
const NEAR = 32;
const CONV_KERNEL = 4;
const CHUNK = 64;
const EXPAND = 2;

/** Bytes of the inputs that the kernels of all channels reach back for. */
function pastBytes(layer, width) {
  if (!layer.causal) return 0;
  const past = channelGroups(layer, width).reduce(
    (sum, { dilation, channels }) => sum + (layer.kernel - 1) * dilation * channels, 0);
  return past * SIZE + BOOKKEEPING;
}

/** Products, other FLOPs (both for a position) and parameters around a depthwise convolution. */
const AROUND = {
  depthwise_conv: (D) => ({ product: 0, other: D, parameters: D }),
  gated_conv: (D) => ({ product: 8 * D * D, other: 2 * D, parameters: 4 * D * D }),
  convsamba: (D) => ({ product: 4 * D * D, other: 9 * D, parameters: 2 * D * D + 3 * D }),
};

function depthwise(layer, D) {
  const { product, other, parameters } = AROUND[layer.name](D);
  const price = { parameters: parameters + D * layer.kernel, state: pastBytes(layer, D) };
  return (T) => ({ ...price, product: T * (product + 2 * D * layer.kernel), other: T * other });
}

function fullConvolution(layer, D) {
  const weights = D * D * layer.kernel, state = pastBytes(layer, D);
  return (T) => {
    const count = positionsOut(layer, T);
    return { parameters: weights + D, product: 2 * count * weights, other: count * D, state };
  };
}

function bytenet(layer, D) {
  const width = Math.floor(D / 2), inner = fullConvolution({ ...layer, name: "conv" }, width);
  const parameters = 2 * D * width + width + D + 2 * D + 4 * width;
  return (T) => {
    const { product, other, ...rest } = inner(T);
    return {
      parameters: parameters + rest.parameters,
      product: product + T * 4 * D * width,
      other: other + T * (NORM_FLOPS * (D + 2 * width) + 2 * (D + width) + width),
      state: rest.state,
    };
  };
}

/** Attention over `time` positions with `links` pairs of target and source, the last of `read` positions. */
function attentionPrice(layer, D, time, links, read) {
  const head = Math.floor(D / layer.heads), groups = (layer.kv_heads ?? layer.heads) * head;
  const last = ring(layer.pattern), stored = !layer.causal ? 0 : last === null ? read : kept(layer.pattern) + last;
  return {
    parameters: 2 * D * (D + groups),
    product: 4 * time * D * (D + groups) + 4 * links * D,
    other: time * (3 * (D + groups) + 2 * Math.floor(head / 2)) + SOFTMAX_FLOPS * links * layer.heads,
    state: layer.causal ? stored * 2 * groups * SIZE + BOOKKEEPING : 0,
  };
}

/** The smallest even number from `least` on without a prime factor above 5. */
function smoothLength(least) {
  const powerOver = (count) => 2 ** Math.max(1, Math.ceil(Math.log2(count)));
  let best = powerOver(least);
  for (let five = 1; five < best; five *= 5) {
    for (let odd = five; odd < best; odd *= 3) best = Math.min(best, odd * powerOver(Math.ceil(least / odd)));
  }
  return best;
}

const transformFlops = (length) => Math.floor(2.5 * length * Math.log2(Math.max(2, length)));

/** Positions that a step of a long convolution prepares together, for so many inputs held. */
const blockLength = (slots) => slots < 1 ? 0 : 2 ** Math.max(0, Math.floor(Math.log2(Math.max(1, slots >> 2))));

function onlineFlops(slots) {
  const block = blockLength(slots);
  let total = (3 * transformFlops(smoothLength(slots + block))) / block + 2 * (1 + Math.min(block, NEAR) / 2);
  for (let tile = NEAR; tile < block; tile *= 2) total += (3 * transformFlops(2 * tile)) / (2 * tile);
  return Math.floor(total);
}

/** Products, other FLOPs (a position) and parameters around a long convolution, with the bias of the plain one. */
const aroundLong = ({ name }, D) => (name === "global_conv" ? AROUND.depthwise_conv : AROUND.gated_conv)(D);

function longPrice(layer, D, read) {
  const slots = Math.min(read, layer.length);
  const { parameters } = aroundLong(layer, D);
  return { parameters: parameters + D * layer.length, state: D * SIZE * (slots + blockLength(slots)) + BOOKKEEPING };
}

function longConvolution(layer, D) {
  const { product, other } = aroundLong(layer, D);
  return (T) => ({
    ...longPrice(layer, D, T),
    product: T * product,
    other: T * other + D * 3 * transformFlops(smoothLength(Math.max(1, 2 * T - 1))),
  });
}

function lstm(layer, D) {
  const price = { parameters: 8 * D * D + 8 * D, state: 2 * D * SIZE + BOOKKEEPING };
  return (T) => ({ ...price, product: 16 * T * D * D, other: 32 * T * D });
}

/** The sizes of Mamba-2 and what one position costs outside its scan. */
function mamba2Sizes(layer, D) {
  const inner = EXPAND * D, size = layer.state_size, channels = inner + 2 * size;
  let head = Math.min(64, inner);
  while (inner % head) head--;
  const heads = inner / head, projected = inner + channels + heads;
  return {
    inner, size,
    product: 2 * D * (projected + inner) + 2 * channels * CONV_KERNEL,
    other: 9 * channels + 12 * inner + 8 * heads,
    price: {
      parameters: D * projected + channels * (CONV_KERNEL + 1) + 3 * heads + inner + inner * D,
      state: (CONV_KERNEL - 1) * channels * SIZE + inner * size * SIZE + BOOKKEEPING,
    },
  };
}

function mamba2(layer, D) {
  const { inner, size, product, other, price } = mamba2Sizes(layer, D);
  return (T) => {
    const count = Math.ceil(T / CHUNK), length = Math.ceil(T / count);
    const scan = 2 * count * length * (length * (size + inner) + 2 * inner * size);
    const carries = Math.ceil(T / CHUNK) * 2 * inner * size;
    return { ...price, product: T * product + scan, other: T * other + carries };
  };
}

const FORMULAS = {
  depthwise_conv: depthwise, gated_conv: depthwise, convsamba: depthwise, conv: fullConvolution, bytenet,
  global_conv: longConvolution, gated_global_conv: longConvolution, lstm, mamba2,
};

/** The prices of a layer's forward pass over sequences of the given lengths (ascending). */
export function layerPrices(layer, width, lengths) {
  if (layer.name !== "attention") return lengths.map(FORMULAS[layer.name](layer, width));
  const links = countLinks(layer.pattern, lengths, layer.causal);
  return lengths.map((length, i) => attentionPrice(layer, width, length, links[i], length));
}

/** The price of one more token of a causal layer when `position` tokens are read; the state is that after it. */
export function stepPrice(layer, width, position) {
  if (layer.name === "attention") {
    return attentionPrice(layer, width, 1, linksOf(layer.pattern, position), position + 1);
  }
  if (layer.name === "mamba2") {
    const { inner, size, product, other, price } = mamba2Sizes(layer, width);
    return { ...price, product: product + 2 * inner * size, other: other + 3 * inner * size };
  }
  const after = FORMULAS[layer.name](layer, width)(1);
  if (layer.name !== "global_conv" && layer.name !== "gated_global_conv") return after;
  const { product, other } = aroundLong(layer, width);
  const slots = Math.min(position + 1, layer.length);
  return { ...longPrice(layer, width, position + 1), product, other: other + width * onlineFlops(slots) };
}

/** Prices added up over the stack, those of equal layers computed once: priceOf(layer, lengths of its input). */
function added(layers, lengths, priceOf) {
  const known = new Map(), sum = lengths.map(() => ({ parameters: 0, product: 0, other: 0, state: 0 }));
  let left = lengths;
  for (const layer of layers) {
    const key = JSON.stringify([layer, left]);
    if (!known.has(key)) known.set(key, priceOf(layer, left));
    known.get(key).forEach((price, i) => Object.keys(price).forEach((of) => { sum[i][of] += price[of]; }));
    left = layer.stride > 1 ? left.map((length) => positionsOut(layer, length)) : left;
  }
  return sum;
}

/** What a stack costs over sequences of the given lengths: layerPrices, added up. */
export const stackPrices = (layers, width, lengths) =>
  added(layers, lengths, (layer, left) => layerPrices(layer, width, left));

/** What one more token costs a causal stack at each of the given positions. */
export const stackStepPrices = (layers, width, positions) =>
  added(layers, positions, (layer) => positions.map((position) => stepPrice(layer, width, position)));
