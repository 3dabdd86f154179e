// What the server sends to: its backends with their health and their windows, and the models that it knows.

import { count, mark, time } from "../format.js";
import { data, draw, h, notice, table } from "../dom.js";
import { every } from "../client.js";

const FACTS = [["context_length", "context", count], ["supports_image_in", "images"], ["supports_video_in", "video"],
  ["supports_reasoning", "reasoning"]];

export async function backendsPage(place, { client, signal, tell }) {
  const backends = h("div.awaited");
  const models = h("div.awaited");
  place.append(h("section", h("h2", "Backends"), backends), h("section", h("h2", "Models"), models));
  await every(5, { signal, tell }, async () => {
    await showBackends(backends, client, signal);
    const found = await client.get("v1/models", {}, signal);
    draw(models, found.data, (all) => table({ caption: "Models", empty: "No backend has told its models yet.",
      columns: ["Model:wide", "Owned by", "What is known of it", "Known since"],
      rows: all.map((model) =>
        [data(model.id), data(model.owned_by), FACTS.filter(([name]) => model[name]).map(([name, words, write]) =>
        h("span.tag", write ? `${words} ${write(model[name])}` : words)), time(model.created)]) }));
  });
}

async function showBackends(place, client, signal) {
  try {
    const found = await client.get("v1/backends", {}, signal);
    draw(place, found.data, (all) => table({ caption: "Backends", empty: "No worker has told its backends yet.",
      columns: ["Health", "Backend:wide", "Since", "In flight:number",
        "Window:number", "Workers:number", "Models"],
      rows: all.map((each) =>
        [h("div", each.well ? mark("good", "Well") : mark("bad", "Unwell"), each.draining && mark("warn", "Draining")),
        h("div", data(each.id), each.reason && h("div.bad-text", data(each.reason))), time(each.since),
          each.window === null ? null : count(each.in_flight), // a worker that is alone tells neither
        each.window === null ? null : count(each.window), count(each.workers),
          each.models.map((model) => h("span.tag", data(model)))]) }));
  } catch (fault) {
    if (!fault.missing) throw fault;
    draw(place, "missing", () => notice("info", "This server does not tell of its backends."));
  }
}
