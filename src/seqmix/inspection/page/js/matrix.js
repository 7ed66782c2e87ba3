// The section of the mixing matrix: one heat map a model, linked by their cell, with what is known of the matrix.

import { choices, element, select } from "page/dom";
import { MatrixPanel } from "page/matrixpanel";

export const id = "matrix";
export const title = "Mixing matrix";

const KEYS =
  "Arrow keys move the cell (with Shift by ten, Home and End to the ends of the row, with Ctrl to the corners), plus and " +
  "minus zoom, 0 shows the whole matrix, Enter chooses the cell for the other sections. By pointer: click chooses, drag " +
  "moves, the wheel zooms once the picture was clicked, two fingers zoom.";

/** Fills the section; called once, when the page opens. */
export function mount(root, page) {
  const { choice, data } = page;
  choice.set({ root: true });
  const looks = [{ value: false, label: "raw" }, { value: true, label: "rows sum to 1" }];
  const colours = [{ value: false, label: "linear" }, { value: true, label: "square root" }];
  const controls = element(
    "div",
    { class: "controls" },
    textChoice(page),
    choices("Weights", looks, choice.get("normalised"), (normalised) => choice.set({ normalised })),
    choices("Colours", colours, choice.get("root"), (value) => choice.set({ root: value })),
  );
  const explanation = element("p", {
    class: "note",
    text:
      "A row is a position that listens, a column one that it listens to: y = readout(M · values). Each weight is shown " +
      "under the pointer with how far it can be off.",
  });
  const panels = element("div", { class: "panels" });
  const made = [];
  const others = (model) => made.filter((_, at) => at !== model);
  data.models.forEach((_, model) => {
    made.push(
      new MatrixPanel(page, model, {
        onCell: (cell) => others(model).forEach((panel) => panel.point(cell)),
        onView: (view) => others(model).forEach((panel) => panel.look(view)),
      }),
    );
    panels.append(made[model].element);
  });
  root.append(explanation, controls, panels, element("p", { class: "note", id: "matrix-keys", text: KEYS }));
}

/** The text that is read, for all sections. */
function textChoice({ choice, data }) {
  const root = element("span");
  choice.watch(["text", "texts"], () => {
    const texts = data.texts.map(({ name }, value) => ({ value, label: name }));
    if (root.firstChild && root.firstChild.querySelectorAll("option").length === texts.length) {
      root.firstChild.show(choice.get("text"));
    } else {
      root.replaceChildren(select("Reads", texts, choice.get("text"), (text) => choice.set({ text })));
    }
  });
  return root;
}
