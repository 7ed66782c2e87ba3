// A heat map of a matrix on a canvas: targets down, sources across, with zoom, pan, and a cell under the pointer or the
// keyboard. It knows nothing of models; what a cell means is said by whoever made it.

import { drawCells, drawLabels, outline } from "page/cells";
import { element, onFrame } from "page/dom";
import { paint } from "page/shades";

const SMALLEST_SPAN = 4; // cells across at the greatest zoom
const LARGEST_SIDE = 620; // pixels
const DRAG = 4; // pixels a pointer moves before a press is a drag

/**
 * @typedef {{values: Float32Array, time: number, source: number, scale: import("page/shades").Scale,
 *   rowLabel: (target: number) => string, columnLabel: (source: number) => string}} Picture
 * @typedef {{target: number, source: number}} Cell
 */

const clamp = (value, least, greatest) => Math.min(Math.max(value, least), Math.max(least, greatest));

export class HeatMap {
  /**
   * @param {string} label the accessible name
   * @param {{onCell?: (cell: Cell | null) => void, onPick?: (cell: Cell) => void, onView?: (view: object) => void}} on
   */
  constructor(label, on = {}) {
    this.on = on;
    this.canvas = element("canvas", { class: "heat", tabindex: "0", role: "application", "aria-label": label });
    this.canvas.setAttribute("aria-roledescription", "heat map");
    this.view = { left: 0, top: 0, span: 1 };
    this.cell = null;
    this.chosen = null;
    this.pointers = new Map();
    this.redraw = onFrame(() => this.#draw());
    for (const [name, handle] of Object.entries({
      keydown: this.#key,
      wheel: this.#wheel,
      pointerdown: this.#press,
      pointermove: this.#move,
      pointerup: this.#release,
      pointercancel: this.#release,
      pointerleave: this.#leave,
    })) {
      this.canvas.addEventListener(name, (event) => handle.call(this, event), { passive: false });
    }
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
  }

  /** Shows another picture; the part that is seen stays where the size is the same. */
  show(picture) {
    if (!picture) return;
    const before = this.picture;
    this.picture = picture;
    this.image = paint(picture.values, picture.time, picture.source, picture.scale);
    if (!before || before.time !== picture.time || before.source !== picture.source) {
      this.view = { left: 0, top: 0, span: this.#whole() };
      this.cell = null;
    }
    this.redraw();
  }

  /** Moves the cursor without telling anyone (for a cell that is linked to another map). */
  point(cell) {
    this.cell = this.#inside(cell) ? cell : null;
    this.redraw();
  }

  /** Marks the chosen cell. */
  mark(cell) {
    this.chosen = this.#inside(cell) ? cell : null;
    this.redraw();
  }

  /** Shows the same part as another map, without telling anyone. */
  look(view) {
    this.#see(view.left, view.top, view.span, false);
  }

  /** Zooms by a factor (above 1 is closer) around a point of the canvas in pixels; the cursor or the middle else. */
  zoom(factor, around = null) {
    if (!this.picture) return;
    const { left, top, span } = this.view;
    const next = clamp(span / factor, Math.min(SMALLEST_SPAN, this.#whole()), this.#whole());
    let [across, down] = [0.5, 0.5];
    if (around) {
      [across, down] = [(around.x - this.frame.left) / this.frame.side, (around.y - this.frame.top) / this.frame.side];
    } else if (this.cell) {
      [across, down] = [(this.cell.source + 0.5 - left) / span, (this.cell.target + 0.5 - top) / span];
    }
    this.#see(left + across * (span - next), top + down * (span - next), next);
  }

  fit() {
    this.#see(0, 0, this.#whole());
  }

  #whole() {
    return Math.max(this.picture.time, this.picture.source);
  }

  #inside(cell) {
    return Boolean(cell && this.picture && cell.target < this.picture.time && cell.source < this.picture.source);
  }

  #see(left, top, span, tell = true) {
    this.view = {
      left: clamp(left, 0, this.picture.source - span),
      top: clamp(top, 0, this.picture.time - span),
      span,
    };
    this.canvas.classList.toggle("zoomed", span < this.#whole());
    this.redraw();
    if (tell) this.on.onView?.(this.view);
  }

  /** Moves the cursor and tells it; the view follows. */
  #go(target, source) {
    const cell = {
      target: clamp(target, 0, this.picture.time - 1),
      source: clamp(source, 0, this.picture.source - 1),
    };
    this.cell = cell;
    const { left, top, span } = this.view;
    const follow = (start, at) => clamp(start, at + 1 - span, at);
    this.#see(follow(left, cell.source), follow(top, cell.target), span);
    this.on.onCell?.(cell);
  }

  #key(event) {
    if (!this.picture || event.altKey || event.metaKey) return;
    const { target, source } = this.cell ?? this.chosen ?? { target: 0, source: 0 };
    const far = event.shiftKey ? 10 : 1;
    const last = { target: this.picture.time - 1, source: this.picture.source - 1 };
    const actions = {
      ArrowUp: () => this.#go(target - far, source),
      ArrowDown: () => this.#go(target + far, source),
      ArrowLeft: () => this.#go(target, source - far),
      ArrowRight: () => this.#go(target, source + far),
      Home: () => this.#go(event.ctrlKey ? 0 : target, 0),
      End: () => this.#go(event.ctrlKey ? last.target : target, last.source),
      PageUp: () => this.#go(target - Math.round(this.view.span / 2), source),
      PageDown: () => this.#go(target + Math.round(this.view.span / 2), source),
      "+": () => this.zoom(1.5),
      "=": () => this.zoom(1.5),
      "-": () => this.zoom(1 / 1.5),
      0: () => this.fit(),
      Enter: () => this.on.onPick?.({ target, source }),
      " ": () => this.on.onPick?.({ target, source }),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  }

  /** The wheel zooms while the picture has the focus (or with Ctrl, as a pinch on a pad says); else the page scrolls. */
  #wheel(event) {
    if (!this.picture || (document.activeElement !== this.canvas && !event.ctrlKey)) return;
    event.preventDefault();
    this.zoom(Math.exp(-clamp(event.deltaY, -100, 100) * (event.ctrlKey ? 0.01 : 0.003)), this.#at(event));
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  #cellAt(event) {
    if (!this.frame) return null;
    const { x, y } = this.#at(event);
    const scale = this.view.span / this.frame.side;
    const target = Math.floor(this.view.top + (y - this.frame.top) * scale);
    const source = Math.floor(this.view.left + (x - this.frame.left) * scale);
    if (x < this.frame.left || y < this.frame.top) return null;
    return this.#inside({ target, source }) ? { target, source } : null;
  }

  #press(event) {
    if (!this.picture) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { start: this.#at(event), at: this.#at(event), view: this.view });
    this.moved = this.pointers.size > 1;
  }

  #move(event) {
    const pressed = this.pointers.get(event.pointerId);
    if (!pressed) {
      this.#hover(event);
      return;
    }
    const others = [...this.pointers.values()].filter((pointer) => pointer !== pressed);
    const now = this.#at(event);
    if (others.length === 1) {
      const other = others[0].at;
      const apart = (point) => Math.max(1, Math.hypot(point.x - other.x, point.y - other.y));
      this.zoom(apart(now) / apart(pressed.at), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
    } else {
      const [across, down] = [now.x - pressed.start.x, now.y - pressed.start.y];
      this.moved = this.moved || Math.hypot(across, down) > DRAG;
      const scale = pressed.view.span / this.frame.side;
      if (this.moved) this.#see(pressed.view.left - across * scale, pressed.view.top - down * scale, this.view.span);
    }
    pressed.at = now;
  }

  #release(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    for (const pointer of this.pointers.values()) Object.assign(pointer, { start: pointer.at, view: this.view });
    if (this.moved || event.type === "pointercancel") return;
    const cell = this.#cellAt(event);
    if (!cell) return;
    this.#hover(event);
    this.on.onPick?.(cell);
  }

  #leave() {
    if (this.pointers.size || document.activeElement === this.canvas) return;
    this.cell = null;
    this.redraw();
    this.on.onCell?.(null);
  }

  #hover(event) {
    const cell = this.#cellAt(event);
    if (!cell || (cell.target === this.cell?.target && cell.source === this.cell?.source)) return;
    this.cell = cell;
    this.redraw();
    this.on.onCell?.(cell);
  }

  #draw() {
    const width = this.canvas.clientWidth;
    if (!width || !this.picture) return;
    const margin = width < 420 ? 44 : 66;
    const side = Math.min(width - margin - 2, LARGEST_SIDE);
    this.frame = { left: margin, top: margin, side };
    const height = margin + side + 2;
    const density = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * density) || this.canvas.height !== Math.round(height * density)) {
      this.canvas.width = Math.round(width * density);
      this.canvas.height = Math.round(height * density);
      this.canvas.style.height = `${height}px`;
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    drawCells(context, this.frame, this.view, this.image);
    drawLabels(context, this.frame, this.view, this.picture, this.cell);
    if (this.chosen) outline(context, this.frame, this.view, this.chosen, "--ink", [3, 2]);
    if (this.cell) outline(context, this.frame, this.view, this.cell, "--accent", []);
  }
}

/** Buttons that zoom a heat map. */
export function zoomButtons(map) {
  const button = (label, name, act) => {
    const made = element("button", { type: "button", "aria-label": name }, label);
    made.addEventListener("click", act);
    return made;
  };
  return element(
    "span",
    { class: "zoom", role: "group", "aria-label": "Zoom" },
    button("−", "Zoom out", () => map.zoom(1 / 1.5)),
    button("+", "Zoom in", () => map.zoom(1.5)),
    button("whole", "Show the whole matrix", () => map.fit()),
  );
}
