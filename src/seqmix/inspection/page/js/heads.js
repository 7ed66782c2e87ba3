// All heads of a layer as small pictures to choose from; one is drawn when it comes into view.

import { element } from "page/dom";
import { paint, scaleOf } from "page/shades";
import { weightsOf } from "page/weights";

const SIDE = 72; // pixels

/** A small picture of one matrix on a canvas. */
function drawSmall(canvas, { values, time, source }, root) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(paint(values, time, source, scaleOf(values, root)), 0, 0, canvas.width, canvas.height);
}

/**
 * A grid of buttons, one a head.
 * @param {object} block the matrices of the layer
 * @param {{names: string[], chosen: number, normalised: boolean, root: boolean, onChoose: (head: number) => void}} how
 */
export function headGrid(block, { names, chosen, normalised, root, onChoose }) {
  const grid = element("div", { class: "heads", role: "group", "aria-label": "Heads of the layer" });
  const buttons = names.map((name, head) => {
    const canvas = element("canvas", { width: String(SIDE), height: String(SIDE), "aria-hidden": "true" });
    const button = element("button", { type: "button", "aria-pressed": String(head === chosen) }, canvas, name);
    button.addEventListener("click", () => onChoose(head));
    grid.append(button);
    return button;
  });
  const draw = (head) => {
    drawSmall(buttons[head].querySelector("canvas"), weightsOf(block, head, normalised), root);
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter(({ isIntersecting }) => isIntersecting)) {
      watcher.unobserve(entry.target);
      draw(buttons.indexOf(entry.target));
    }
  });
  buttons.forEach((button) => watcher.observe(button));
  grid.choose = (head) => buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === head)));
  return grid;
}
