// Draws the part of a heat map that is seen: the cells, the labels of rows and columns, outlines around cells.
//
// frame: where the square of cells stands on the canvas, {left, top, side} in pixels.
// view: the part of the matrix in it, {left, top, span} in cells.

import { cssColor } from "page/dom";

const LABEL = 11; // pixels of a label's letters
const WIDTH_OF_A_LETTER = 0.62; // of its height

const shorten = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

/** Runs `draw` with the drawing held inside the frame and `edge` pixels around it. */
function inside(context, { left, top, side }, edge, draw) {
  context.save();
  context.beginPath();
  context.rect(left - edge, top - edge, side + 2 * edge, side + 2 * edge);
  context.clip();
  draw();
  context.restore();
}

/** Draws an image of one pixel a cell. */
export function drawCells(context, frame, view, image) {
  const { left, top, side } = frame;
  const pixels = side / view.span;
  inside(context, frame, 0, () => {
    context.imageSmoothingEnabled = pixels < 1;
    const [x, y] = [left - view.left * pixels, top - view.top * pixels];
    context.drawImage(image, x, y, image.width * pixels, image.height * pixels);
  });
  context.strokeStyle = cssColor("--line");
  context.strokeRect(left - 0.5, top - 0.5, side + 1, side + 1);
}

/** The indices that have room for a label, every k-th one where they would overlap, with their middles in pixels. */
function labelled(count, start, { span }, side) {
  const pixels = side / span;
  const every = Math.ceil((LABEL + 2) / pixels);
  const places = [];
  for (let index = Math.ceil(start / every) * every; index < Math.min(count, start + span); index += every) {
    const middle = (index + 0.5 - start) * pixels;
    if (middle <= side) places.push([index, middle]);
  }
  return places;
}

/** Draws the tokens of the rows and columns; those of `cell` stand out. */
export function drawLabels(context, { left, top, side }, view, picture, cell) {
  const letters = Math.floor((left - 6) / (LABEL * WIDTH_OF_A_LETTER));
  const colour = (isHere) => cssColor(isHere ? "--accent" : "--soft");
  context.font = `${LABEL}px ui-monospace, monospace`;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const [target, y] of labelled(picture.time, view.top, view, side)) {
    context.fillStyle = colour(target === cell?.target);
    context.fillText(shorten(picture.rowLabel(target), letters), left - 5, top + y);
  }
  context.textAlign = "left";
  for (const [source, x] of labelled(picture.source, view.left, view, side)) {
    context.save();
    context.translate(left + x, top - 5);
    context.rotate(-Math.PI / 2);
    context.fillStyle = colour(source === cell?.source);
    context.fillText(shorten(picture.columnLabel(source), letters), 0, 0);
    context.restore();
  }
}

/** Draws a border around a cell, large enough to be seen where cells are small. */
export function outline(context, frame, view, cell, colour, dashes) {
  const pixels = frame.side / view.span;
  const size = Math.max(pixels, 5);
  const x = frame.left + (cell.source + 0.5 - view.left) * pixels - size / 2;
  const y = frame.top + (cell.target + 0.5 - view.top) * pixels - size / 2;
  inside(context, frame, 2, () => {
    context.setLineDash(dashes);
    context.lineWidth = 2;
    context.strokeStyle = cssColor(colour);
    context.strokeRect(x, y, size, size);
  });
}
