// Puts the page together: the data, what is chosen, and the sections.

import { blockReader } from "page/blocks";
import { element, visible } from "page/dom";
import { makeStore } from "page/store";
import * as live from "page/live";
import * as matrix from "page/matrix";
import * as graph from "page/graph";
import * as field from "page/field";
import * as context from "page/context";
import * as positions from "page/positions";
import * as rollout from "page/rollout";
import * as costs from "page/costs";
import * as playground from "page/playground";

const SECTIONS = [matrix, graph, field, context, positions, rollout, costs, playground];

/** What the sections share. */
function makePage(data) {
  const target = Math.floor((data.texts[0]?.tokens.length ?? 1) * 0.75);
  const choice = makeStore({
    text: 0,
    target,
    source: Math.max(0, target - 16),
    normalised: false,
    ...Object.fromEntries(data.models.flatMap((_, model) => [[`mixer${model}`, 0], [`head${model}`, 0]])),
  });
  const packed = new Map();
  const textOf = (id) => packed.get(id) ?? document.getElementById(`block-${id}`).textContent;
  return {
    data,
    choice,
    block: blockReader(data.blocks, textOf),
    token: (text, position) => visible(data.texts[text].tokens[position] ?? ""),
    /** Adds a block that came later: what is said of it, and its packed text. */
    addBlock(id, meta, text) {
      data.blocks[id] = meta;
      packed.set(id, text);
    },
  };
}

/** A note for every text that is shown in part; of a text and the same with a token changed, one. */
function cutNotes(page) {
  const root = element("div");
  page.choice.watch(["texts"], () => {
    const cut = page.data.texts.filter((text) => text.cut_from !== null);
    const lengths = new Map(cut.map((text) => [text.cut_from, text]).reverse());
    root.replaceChildren(
      ...[...lengths.values()].reverse().map((text) =>
        element("p", {
          class: "note",
          text: `Of ${text.name}, the first ${text.tokens.length} of ${text.cut_from} tokens are shown.`,
        }),
      ),
    );
  });
  return root;
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = makePage(data);
  const main = document.querySelector("main");
  const bar = document.querySelector("nav");
  if (data.models.length) {
    document.getElementById("texts").append(cutNotes(page));
    if (data.live) live.mount(document.getElementById("texts").appendChild(element("div")), page);
  }
  const shown = data.models.length ? SECTIONS : [playground];
  for (const section of shown) {
    const body = element("div");
    const heading = element("h2", { id: `${section.id}-title`, text: section.title });
    main.append(element("section", { id: section.id, "aria-labelledby": `${section.id}-title` }, heading, body));
    bar.append(element("a", { href: `#${section.id}`, text: section.title }));
    section.mount(body, page);
  }
  document.documentElement.dataset.ready = "true";
  document.documentElement.dataset.readyAt = String(Math.round(performance.now()));
}

start();
