// Small helpers to build what is seen: elements, controls with names, numbers as people read them.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An element; attributes that begin with "on" are listeners, `text` is its text, null and false are left out. */
export function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** As `element`, of SVG. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * A labelled select.
 * @param {{value: *, label: string}[]} options
 * @returns {HTMLElement} a label with a method `show(value)`.
 */
export function select(label, options, value, onChange) {
  const box = element(
    "select",
    { onchange: () => onChange(options[box.selectedIndex].value) },
    options.map((option) => element("option", { text: option.label })),
  );
  const root = element("label", { class: "control" }, element("span", { text: label }), box);
  root.show = (chosen) => {
    box.selectedIndex = options.findIndex((option) => option.value === chosen);
  };
  root.show(value);
  return root;
}

/**
 * A labelled slider that shows its value.
 * @param {{min: number, max: number, step?: number, value: number, show?: function(number): string}} range
 * @returns {HTMLElement} a label with a method `show(value)`.
 */
export function slider(label, range, onInput) {
  const words = range.show ?? ((value) => format(value));
  const read = element("output", { text: words(range.value) });
  const input = element("input", {
    type: "range",
    min: range.min,
    max: range.max,
    step: range.step ?? 1,
    value: range.value,
    "aria-valuetext": words(range.value),
    oninput: () => {
      root.show(Number(input.value));
      onInput(Number(input.value));
    },
  });
  const root = element("label", { class: "control slider" }, element("span", { text: label }), input, read);
  root.show = (value) => {
    input.value = value;
    read.textContent = words(value);
    input.setAttribute("aria-valuetext", words(value));
  };
  return root;
}

/**
 * Buttons of which one is pressed.
 * @param {{value: *, label: string}[]} options
 * @returns {HTMLElement} a group with a method `show(value)`.
 */
export function choices(label, options, value, onChange) {
  const buttons = options.map((option) =>
    element("button", {
      type: "button",
      text: option.label,
      onclick: () => {
        root.show(option.value);
        onChange(option.value);
      },
    }),
  );
  const root = element("div", { class: "choice", role: "group", "aria-label": label }, buttons);
  root.show = (chosen) => {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(options[index].value === chosen)));
  };
  root.show(value);
  return root;
}

/** The present value of a CSS variable, such as cssColor("--series-1"). */
export function cssColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Calls `run` at the next frame, once for however many calls come before it. */
export function onFrame(run) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      run();
    });
  };
}

/** Calls `run` whenever the page changes between light and dark. */
export function onScheme(run) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", run);
}

/** A number in at most `digits` digits: 0.123, 12.3, 1230, 1.23e-7. */
export function format(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e9) return value.toExponential(digits - 1);
  if (Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(digits)));
}

/** A number with a unit: 940, 300k, 1.23M, 2.5G. */
export function human(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size * 0.9995) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return format(value);
}

/** Bytes with a binary unit. */
export function bytes(value) {
  for (const [power, unit] of [[4, "TiB"], [3, "GiB"], [2, "MiB"], [1, "KiB"]]) {
    if (value >= 1024 ** power * 0.9995) return `${Number((value / 1024 ** power).toPrecision(3))} ${unit}`;
  }
  return `${Math.round(value)} B`;
}

const VISIBLE = new Map([[" ", "␣"], ["\n", "⏎"], ["\t", "⇥"], ["\r", "␍"]]);

/** A token with its white space made visible. */
export function visible(token) {
  return [...token].map((letter) => VISIBLE.get(letter) ?? letter).join("");
}
