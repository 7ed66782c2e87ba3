// A number that is set by a slider in steps that double, or exactly in a field beside it.

import { element } from "page/dom";

/**
 * @param {string} label
 * @param {{stops: number[], value: number}} range the values that the slider stops at; the field takes all between.
 * @param {function(number): void} onInput
 * @returns {HTMLElement} a group with a method `show(value)`.
 */
export function knob(label, { stops, value }, onInput) {
  const low = stops[0], high = stops[stops.length - 1];
  let current = value;
  const range = element("input", {
    type: "range", min: 0, max: stops.length - 1, step: 1, "aria-label": label,
    oninput: () => set(stops[Number(range.value)]),
  });
  const field = element("input", {
    type: "number", min: low, max: high, step: 1, inputmode: "numeric", "aria-label": `${label}, exactly`,
    title: `A whole number from ${low} to ${high}`,
    oninput: () => {
      const given = Number(field.value);
      const isGood = field.value !== "" && Number.isInteger(given) && given >= low && given <= high;
      field.setAttribute("aria-invalid", String(!isGood));
      if (isGood) set(given);
    },
    onchange: () => root.show(current),
  });
  const root = element("div", { class: "control knob", role: "group", "aria-label": label },
    element("span", { text: label, "aria-hidden": "true" }), range, field);

  function set(given) {
    root.show(given);
    onInput(given);
  }

  root.show = (given) => {
    current = given;
    range.value = nearest(stops, given);
    range.setAttribute("aria-valuetext", given.toLocaleString("en"));
    if (document.activeElement !== field || Number(field.value) !== given) field.value = given;
    field.setAttribute("aria-invalid", "false");
  };
  root.show(value);
  return root;
}

/** The index of the last stop that is not above the value. */
function nearest(stops, value) {
  const above = stops.findIndex((stop) => stop > value);
  return above < 0 ? stops.length - 1 : Math.max(0, above - 1);
}

/** A labelled line of text. */
export function textField(label, hint, onInput) {
  const field = element("input", { type: "text", placeholder: hint, oninput: () => onInput(field.value) });
  const root = element("label", { class: "control" }, element("span", { text: label }), field);
  root.show = (text) => {
    if (field.value !== text) field.value = text;
  };
  root.mark = (isGood) => field.setAttribute("aria-invalid", String(!isGood));
  return root;
}
