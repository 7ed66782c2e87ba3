// The playground: stacks of layers that the reader designs, their links and what follows from them.

import { element, select } from "page/dom";
import { knob } from "page/knobs";
import { PAIRS, SCHEMES, shortName } from "page/presets";
import { SHARED, withDefaults } from "page/rules";
import { costPanel } from "page/schemecosts";
import { schemePanel } from "page/schemepanel";

export const id = "playground";
export const title = "Playground";

const PAUSE = 100;
const OWN = "A scheme of your own";

/** A scheme {name, settings} from a preset's name. */
const schemeOf = (name) => ({ name, settings: withDefaults(SCHEMES[name].settings) });

export function mount(root) {
  const shared = Object.fromEntries(Object.entries(SHARED).map(([key, { value }]) => [key, value]));
  const schemes = [schemeOf(PAIRS[0].first), schemeOf(PAIRS[0].second)];
  let isCompared = true;
  const costs = costPanel();

  const pairs = [...PAIRS.map(({ label }, value) => ({ value, label })), { value: null, label: "Schemes of your own" }];
  const pair = select("Begin with", pairs, 0, (index) => {
    if (index === null) return;
    const { first, second } = PAIRS[index];
    isCompared = true;
    compare.show(true);
    take(first, second);
    choose(0, first);
    choose(1, second);
  });
  const sides = [{ value: true, label: "a second scheme" }, { value: false, label: "nothing" }];
  const compare = select("Beside it", sides, true, (value) => {
    isCompared = value;
    arrange();
  });
  const knobOf = ([key, range]) => [key, knob(range.label, range, (value) => {
    shared[key] = value;
    redraw();
  })];
  const knobs = Object.fromEntries(Object.entries(SHARED).map(knobOf));

  const panels = schemes.map((scheme, index) => schemePanel({
    title: index ? "Second scheme" : "First scheme",
    scheme,
    shared: () => shared,
    change: (settings) => {
      pair.show(null);
      put(index, { name: null, settings });
    },
    choose: (name) => {
      pair.show(null);
      take(name);
      choose(index, name);
    },
  }));
  const place = element("div", { class: "panels" });
  // Prices follow when the reader stops for a moment, so that links and fields keep up with a moving slider.
  let pricing = 0;
  const price = () => {
    clearTimeout(pricing);
    pricing = setTimeout(() => costs.update(named(), shared), PAUSE);
  };

  function put(index, scheme) {
    schemes[index] = scheme;
    panels[index].update(scheme);
    price();
  }

  function choose(index, name) {
    put(index, schemeOf(name));
  }

  /** Sets the shared numbers to what the presets ask for. */
  function take(...names) {
    const asked = (key) => names.map((name) => SCHEMES[name][key]).filter((value) => value !== undefined);
    for (const key of Object.keys(shared)) {
      const values = asked(key);
      if (values.length) shared[key] = Math.max(...values);
      knobs[key].show(shared[key]);
    }
    redraw();
  }

  /** The schemes that are shown, with names that tell them apart. */
  function named() {
    const shown = isCompared ? schemes : schemes.slice(0, 1);
    const names = shown.map(({ name }) => (name === null ? OWN : shortName(name)));
    const isTwice = names[0] === names[1];
    const place = [" (first)", " (second)"];
    return shown.map(({ settings }, i) => ({ settings, name: `${names[i]}${isTwice ? place[i] : ""}` }));
  }

  function redraw() {
    panels.slice(0, isCompared ? 2 : 1).forEach((panel) => panel.redraw());
    price();
  }

  function arrange() {
    place.replaceChildren(...panels.slice(0, isCompared ? 2 : 1).map((panel) => panel.root));
    redraw();
  }

  const intro = "Design a stack and see which inputs reach an output. The formulas are those of the library's mixers; "
    + "nothing is trained.";
  root.classList.add("playground");
  root.append(
    element("p", { text: intro }),
    element("div", { class: "controls" }, pair, compare),
    element("div", { class: "knobs" }, Object.values(knobs)),
    place,
    costs.root,
  );
  take(PAIRS[0].first, PAIRS[0].second);
  panels.forEach((panel, index) => panel.update(schemes[index]));
  arrange();
}
