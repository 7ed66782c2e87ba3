// What mixers, heads and cells of a matrix are called.

/** What kind of matrix it is, in a sentence. */
export function nature({ fixed, jacobian, directions }) {
  if (jacobian) {
    const how = directions ? `estimated from ${directions} random directions` : "exact";
    return `A Jacobian (${how}): how strongly an output answers a change of an input; the mixer is not linear in a ` +
      "stream of values, so this changes with content.";
  }
  return fixed ? "Fixed: the same for every input." : "Changes with content: another text has other weights.";
}

/** That some heads were left out, where they were. */
export const leftOut = ({ heads, shown }) => (shown ? ` ${shown.length} of its ${heads} heads are in this page.` : "");

/** The name of a mixer among those of its model. */
export const mixerName = ({ layer, slot, name }) =>
  `Layer ${layer + 1}: ${name}${slot === "feed_forward" ? " (feed-forward)" : ""}`;

/** The names of the heads that the page holds. */
export const headNames = ({ heads, shown }) =>
  (shown ?? [...Array(heads).keys()]).map((head) => (heads === 1 ? "the only head" : `head ${head + 1}`));

/** "target ← source" of a cell, with tokens, positions and distance. */
export function cellName(page, text, { target, source }) {
  const distance = target - source;
  const where = distance === 0 ? "itself" : distance > 0 ? `${distance} back` : `${-distance} ahead`;
  return `“${page.token(text, target)}” at ${target} listens to “${page.token(text, source)}” at ${source} (${where})`;
}
