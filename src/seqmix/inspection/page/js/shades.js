// From weights to colours: one ramp of 256 shades from the page's colours, and pictures with one pixel a weight.

import { cssColor, element } from "page/dom";

const SHADES = 256;

/**
 * What a colour stands for.
 * @typedef {{largest: number, signed: boolean, root: boolean}} Scale
 */

/** The scale of a picture: to its largest |weight|, with two directions where some weights are negative. */
export function scaleOf(values, root) {
  let largest = 0;
  let least = 0;
  for (const value of values) {
    if (value > largest) largest = value;
    if (value < least) least = value;
  }
  return { largest: Math.max(largest, -least), signed: least < 0, root };
}

/** Where a value stands on the ramp: 0 to 1, and 0.5 is zero where the scale is signed. */
export function place(value, scale) {
  if (scale.largest === 0) return scale.signed ? 0.5 : 0;
  const share = Math.min(1, Math.abs(value) / scale.largest);
  const shown = scale.root ? Math.sqrt(share) : share;
  return scale.signed ? 0.5 + (Math.sign(value) * shown) / 2 : shown;
}

/** The colours of a scale from its least to its greatest value, as a canvas of 256 x 1 pixels. */
export function ramp(signed) {
  const canvas = document.createElement("canvas");
  canvas.width = SHADES;
  canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const gradient = context.createLinearGradient(0.5, 0, SHADES - 0.5, 0);
  if (signed) gradient.addColorStop(0, cssColor("--negative"));
  gradient.addColorStop(signed ? 0.5 : 0, cssColor("--low"));
  gradient.addColorStop(1, cssColor("--high"));
  context.fillStyle = gradient;
  context.fillRect(0, 0, SHADES, 1);
  return canvas;
}

/** A canvas with one pixel a weight; `values` is time x source, row by row. */
export function paint(values, time, source, scale) {
  const colours = ramp(scale.signed).getContext("2d").getImageData(0, 0, SHADES, 1).data;
  const shades = new Uint32Array(colours.buffer);
  const canvas = document.createElement("canvas");
  canvas.width = source;
  canvas.height = time;
  const context = canvas.getContext("2d");
  const image = context.createImageData(source, time);
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < values.length; at += 1) {
    pixels[at] = shades[Math.round(place(values[at], scale) * (SHADES - 1))];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The colours with numbers below them: the least, zero or the middle, and the greatest value. */
export function legend(scale, format) {
  const bar = ramp(scale.signed);
  bar.className = "ramp";
  bar.setAttribute("aria-hidden", "true");
  const middle = scale.signed ? 0 : scale.largest * (scale.root ? 0.25 : 0.5);
  const ends = [scale.signed ? -scale.largest : 0, middle, scale.largest];
  const numbers = ends.map((value) => element("span", {}, format(value)));
  const label = `Colours from ${format(ends[0])} to ${format(ends[2])}${scale.root ? ", square root" : ", linear"}`;
  return element("div", { class: "legend", role: "img", "aria-label": label }, bar, element("div", {}, ...numbers));
}
