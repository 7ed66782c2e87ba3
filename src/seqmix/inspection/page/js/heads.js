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
 * @returns {{element: HTMLElement, choose: (head: number) => void}}
 */
export function headGrid(block, { names, chosen, normalised, root, onChoose }) {
  const buttons = names.map((name, head) =>
    element(
      "button",
      { type: "button", onclick: () => onChoose(head) },
      element("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" }),
      name,
    ),
  );
  const watcher = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter(({ isIntersecting }) => isIntersecting)) {
      watcher.unobserve(target);
      drawSmall(target.querySelector("canvas"), weightsOf(block, buttons.indexOf(target), normalised), root);
    }
  });
  buttons.forEach((button) => watcher.observe(button));
  const choose = (head) => buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === head)));
  choose(chosen);
  return { element: element("div", { class: "heads", role: "group", "aria-label": "Heads of the layer" }, buttons), choose };
}
