// Another text, typed on a page that is served: it goes to the server, and its matrices come back.

import { element } from "page/dom";

const GONE = "Nothing answers any more: start seqmix inspect --live again, and open the page that it names.";

/** The box to type in; `page.data.token` is what the server knows its own page by. */
export function mount(root, page) {
  const box = element("textarea", { id: "live-text", rows: 3, required: true, "aria-describedby": "live-note" });
  const button = element("button", { type: "submit", text: "Read it" });
  const status = element("p", { class: "note", role: "status" });
  const form = element(
    "form",
    { class: "live", onsubmit: (event) => submit(event) },
    element("label", { for: "live-text", text: "Type another text" }),
    box,
    button,
    status,
    element("p", {
      class: "note",
      id: "live-note",
      text: "The matrices, their numbers and the graph follow the chosen text; all other sections stay with the first.",
    }),
  );
  root.append(form);

  async function submit(event) {
    event.preventDefault();
    // A second text waits until the first is read.
    if (button.disabled) return;
    button.disabled = true;
    status.textContent = "The model reads the text …";
    try {
      const answer = await ask(page.data.token, box.value);
      addText(page, answer);
      status.textContent = `${answer.text.name} is shown.`;
    } catch (error) {
      status.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  }
}

/** What the server answers; its sentence as an error where it refuses. */
async function ask(token, text) {
  let response;
  try {
    response = await fetch("/text", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Seqmix-Token": token },
      body: JSON.stringify({ text }),
    });
  } catch {
    throw new Error(GONE);
  }
  const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Puts the text beside the others and chooses it. */
export function addText(page, { text, models, blocks, packed }) {
  for (const [id, meta] of Object.entries(blocks)) page.addBlock(id, meta, packed[id]);
  models.forEach(({ mixers }, model) => {
    mixers.forEach((entry, at) => {
      const known = page.data.models[model].mixers[at];
      for (const key of ["blocks", "structure", "sentences"]) known[key].push(...entry[key]);
    });
  });
  const place = page.data.texts.push(text) - 1;
  const last = text.tokens.length - 1;
  const inside = (key) => Math.min(page.choice.get(key), last);
  page.choice.set({ texts: place + 1, text: place, target: inside("target"), source: inside("source") });
}
