// The matrix of one model: the choice of layer and head, the heat map, its read-out, legend, numbers and small pictures.

import { element, format, onScheme, select } from "page/dom";
import { headGrid } from "page/heads";
import { HeatMap, zoomButtons } from "page/heat";
import { movesView } from "page/moves";
import { legend, scaleOf } from "page/shades";
import { structureTable } from "page/structure";
import { weightsOf, withError } from "page/weights";
import { cellName, headNames, leftOut, mixerName, nature } from "page/words";

const ASK = "Point at a cell, or move to one with the arrow keys.";

export class MatrixPanel {
  /** @param {{onCell: Function, onView: Function}} linked told what the reader looks at, for the panels beside this one */
  constructor(page, model, linked) {
    this.page = page;
    this.choice = page.choice;
    this.mixers = page.data.models[model].mixers;
    this.keys = { mixer: `mixer${model}`, head: `head${model}` };
    this.weights = null;
    this.asked = 0;
    const { name } = page.data.models[model];
    this.map = new HeatMap(`Mixing matrix of ${name}`, {
      onCell: (cell) => {
        this.#say(cell);
        linked.onCell(cell);
      },
      onPick: (cell) => this.choice.set(cell),
      onView: linked.onView,
    });
    this.map.canvas.setAttribute("aria-describedby", "matrix-keys");
    this.#build(name, movesView(page, model));
    this.#watch();
  }

  /** Moves the cursor to the cell that the panel beside this one has under its own. */
  point(cell) {
    this.map.point(cell);
    this.#say(cell);
  }

  /** Shows the same part as the panel beside this one. */
  look(view) {
    this.map.look(view);
  }

  get text() {
    return this.choice.get("text");
  }

  get mixer() {
    return this.mixers[this.choice.get(this.keys.mixer)];
  }

  get head() {
    return this.choice.get(this.keys.head);
  }

  #build(name, moves) {
    const layers = this.mixers.map((mixer, value) => ({ value, label: mixerName(mixer) }));
    this.layerChoice = select("Layer", layers, this.choice.get(this.keys.mixer), (at) => {
      const last = headNames(this.mixers[at]).length - 1;
      this.choice.set({ [this.keys.mixer]: at, [this.keys.head]: Math.min(this.head, last) });
    });
    this.headChoice = element("span");
    this.kind = element("p", { class: "note" });
    this.readout = element("p", { class: "readout", "aria-live": "polite" });
    this.legend = element("div");
    this.sentence = element("p", { class: "sentence" });
    this.numbers = element("div");
    this.small = element(
      "details",
      { ontoggle: async () => this.#drawHeads(await this.#block()) },
      element("summary", { text: "All heads of this layer" }),
    );
    this.element = element(
      "div",
      { class: "panel matrix" },
      element("h3", { text: name }),
      element("div", { class: "controls" }, this.layerChoice, this.headChoice, zoomButtons(this.map)),
      this.kind,
      element(
        "div",
        { class: "beside" },
        element("div", {}, this.map.canvas, this.readout, this.legend),
        element("div", {}, this.sentence, this.numbers, this.small),
      ),
      moves,
    );
  }

  #watch() {
    const { mixer, head } = this.keys;
    const draw = () => this.#draw();
    this.choice.watch([mixer], () => {
      const names = headNames(this.mixer).map((label, value) => ({ value, label }));
      this.headChoice.replaceChildren(select("Head", names, this.head, (at) => this.choice.set({ [head]: at })));
    });
    this.choice.watch([mixer, head, "text"], () => this.#tell());
    this.choice.watch([mixer, head, "text", "normalised", "root"], draw);
    this.choice.watch(["target", "source"], () => this.#mark());
    onScheme(() => {
      this.grid = null;
      draw();
    });
  }

  #block() {
    return this.page.block(this.mixer.blocks[this.text]);
  }

  /** What is known of the matrix, in words and numbers. */
  #tell() {
    this.layerChoice.show(this.choice.get(this.keys.mixer));
    this.headChoice.firstChild.show(this.head);
    this.kind.textContent = nature(this.mixer) + leftOut(this.mixer);
    this.sentence.textContent = this.mixer.sentences[this.text][this.head];
    this.numbers.replaceChildren(structureTable(this.mixer.structure[this.text][this.head]));
  }

  async #draw() {
    const request = (this.asked += 1);
    const block = await this.#block();
    if (request !== this.asked) return;
    this.weights = weightsOf(block, this.head, this.choice.get("normalised"));
    const scale = scaleOf(this.weights.values, this.choice.get("root"));
    const label = (position) => this.page.token(this.text, position);
    this.map.show({ ...this.weights, scale, rowLabel: label, columnLabel: label });
    this.#mark();
    this.legend.replaceChildren(legend(scale, format));
    this.#say(this.map.cell);
    this.#drawHeads(block);
  }

  #mark() {
    this.map.mark({ target: this.choice.get("target"), source: this.choice.get("source") });
  }

  #say(cell) {
    if (!this.weights || !cell) {
      this.readout.textContent = ASK;
      return;
    }
    const { values, source, error } = this.weights;
    const value = withError(values[cell.target * source + cell.source], error(cell.target, cell.source));
    this.readout.textContent = `${cellName(this.page, this.text, cell)}: ${value}`;
  }

  /** The small pictures, while they are open; they are made anew only where they show something else. */
  #drawHeads(block) {
    const names = headNames(this.mixer);
    const [normalised, root] = [this.choice.get("normalised"), this.choice.get("root")];
    this.small.hidden = names.length < 2;
    if (!this.small.open || this.small.hidden) return;
    const shown = [block, normalised, root];
    if (this.grid && shown.every((part, at) => part === this.grid.shown[at])) {
      this.grid.choose(this.head);
      return;
    }
    const onChoose = (at) => this.choice.set({ [this.keys.head]: at });
    this.small.querySelector(".heads")?.remove();
    this.grid = headGrid(block, { names, chosen: this.head, normalised, root, onChoose });
    this.grid.shown = shown;
    this.small.append(this.grid.element);
  }
}
