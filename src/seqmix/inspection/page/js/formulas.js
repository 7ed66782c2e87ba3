// The receptive field of a stack written out, with the numbers put in, and other facts in words.

import { jumps, stackField } from "page/reach";

/** A whole number with its thousands apart; in powers of ten where it is too large to be exact. */
export const number = (value) =>
  (value > Number.MAX_SAFE_INTEGER ? value.toExponential(2) : value.toLocaleString("en"));

/** A count with its noun: 1 layer, 2 layers. */
export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

const SHOWN_TERMS = 7;

/** The formula of one layer's term in symbols. */
function symbols({ kind, causal }, { pattern }) {
  if (kind === "strided") return "(K − 1) · d · (strides below)";
  if (kind === "heads") return "(K − 1) · (greatest d)";
  if (kind === "convolution") return "(K − 1) · d";
  if (kind === "global") return "(K − 1)";
  if (pattern.window.block > 1) return causal ? "(w · block − 1)" : "((2w − 1) · block − 1)";
  return causal ? "(w − 1) · d" : "2 · (w − 1) · d";
}

/** The same term with a layer's numbers. */
function term({ kind, causal }, layer, jump) {
  if (kind === "global") return `${number(layer.length - 1)}`;
  if (kind === "sparse") {
    const { size, dilation, block } = layer.pattern.window;
    if (block > 1) return causal ? `(${size} · ${block} − 1)` : `(${2 * size - 1} · ${block} − 1)`;
    return `${causal ? "" : "2 · "}${number(size - 1)} · ${number(dilation)}`;
  }
  const text = `${number(layer.kernel - 1)} · ${number(Math.max(...layer.dilation))}`;
  return kind === "strided" ? `${text} · ${number(jump)}` : text;
}

/** Terms with equal neighbours taken together; the middle of a long row is left out. */
function joined(terms) {
  const runs = [];
  for (const text of terms) {
    const last = runs[runs.length - 1];
    if (last?.text === text) last.count++;
    else runs.push({ text, count: 1 });
  }
  const texts = runs.map(({ text, count }) => (count > 1 ? `${count} × (${text})` : text));
  return texts.length <= SHOWN_TERMS ? texts : [...texts.slice(0, SHOWN_TERMS - 2), "…", texts[texts.length - 1]];
}

/** {symbols, numbers, value}: the receptive field by its formula; value is null where it has no bound. */
export function fieldFormula(settings, layers) {
  const value = stackField(layers);
  if (value === null) return { symbols: "", numbers: "", value };
  const scale = jumps(layers), terms = layers.map((layer, i) => term(settings, layer, scale[i]));
  return {
    symbols: `1 + Σ ${symbols(settings, layers[0])}`,
    numbers: ["1", ...joined(terms)].join(" + "),
    value,
  };
}

/** What was counted from the drawn links, beside the formula. */
export function countInWords(count, field, isWhole, drawn, hasBlocks) {
  const seen = `${plural(count.span, "position")} from the first to the last reached`;
  const noted = (text) => ({ agrees: null, text });
  if (field === null) return noted(`${number(count.seen)} of the ${number(drawn)} drawn positions reached`);
  if (!isWhole) return noted(`${seen}; the ${number(drawn)} drawn are too few to show the field of ${number(field)}`);
  if (hasBlocks && count.span < field) {
    return noted(`${seen}; the formula is the most, since positions of a block see unequally far`);
  }
  const agrees = count.span === field;
  return { agrees, text: agrees ? `${seen}, as the formula says` : `${seen}, which is not what the formula says` };
}

/** How many layers a rule takes until the first token reaches the last, from `layersNeeded`. */
export function neededInWords(needed, length) {
  if (needed === undefined) return "more than one; drawn links differ from output to output";
  if (needed === null) return "never, however many layers";
  const { count, lands } = needed, spanning = plural(count, "layer");
  if (lands === null) return `${spanning}, by their spans`;
  if (lands === count) return spanning;
  const skipped = `${number(count)} would span ${number(length)} tokens, but skip the first one`;
  return lands === false ? `${skipped}, as a few more do` : `${plural(lands, "layer")}: ${skipped}`;
}

/** How many positions take how many layers. */
export function reachedInWords(fewest) {
  const counts = new Map();
  for (const count of fewest) if (count > 0) counts.set(count, (counts.get(count) ?? 0) + 1);
  const sorted = [...counts].sort((a, b) => a[0] - b[0]);
  const texts = sorted.map(([layers, count]) => `${number(count)} in ${plural(layers, "layer")}`);
  const farthest = `the farthest in ${plural(Math.max(...counts.keys()), "layer")}`;
  const shown = texts.length > 6 ? [...texts.slice(0, 5), farthest] : texts;
  const never = fewest.filter((count) => count < 0).length;
  return `Besides itself: ${shown.join(", ") || "none"}; ${number(never)} not reached.`;
}

