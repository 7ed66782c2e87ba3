// The numbers that name the structure of a matrix, as a small table.

import { element, format } from "page/dom";

/** A percentage that says 100 for exactly that alone. */
function share(value) {
  if (value === null) return "–";
  if (value < 1 && value >= 0.9995) return "over 99.9 %";
  return `${(100 * value).toFixed(value > 0 && value < 0.1 ? 2 : 1)} %`;
}

const whole = (value) => (value === null ? "–" : String(value));

/** The rows of the table: what is measured, its value, and what the number means. */
function rows(found) {
  return [
    ["Toeplitz", share(found.toeplitz), "of the squared weight depends on the distance alone; 100 % for a convolution"],
    ["Lags", `${whole(found.nearest_lag)} to ${whole(found.farthest_lag)}`, "nearest and farthest link, in positions back"],
    ["Band of 99 %", whole(found.band_99), "lags up to this one hold 99 % of the weight"],
    ["Links", share(found.links), "of those that could be are not zero"],
    ["Rank", whole(found.rank), "numerical, in single precision"],
    ["Effective rank", format(found.effective_rank), "e to the entropy of the singular values"],
    ["Entropy", `${format(found.entropy)} bits`, `as if each position listened to ${format(found.listens_to)} alike`],
    ["Row sums", `${format(found.least_row_sum)} to ${format(found.greatest_row_sum)}`, "1 for a weighted mean"],
    ["Negative", share(found.negative), "of the absolute weight"],
  ];
}

/** A table of one Structure of the raw matrix. */
export function structureTable(found) {
  const body = rows(found).map(([name, value, meaning]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value), element("td", {}, meaning)),
  );
  return element(
    "table",
    { class: "numbers" },
    element("caption", {}, "Structure of the raw matrix"),
    element("tbody", {}, ...body),
  );
}
