// The organisation's files: look, take, use, delete.

import { ask, brief, button, data, draw, field, h, select, table, toast, turn } from "../dom.js";
import { bytes, time } from "../format.js";
import { every } from "../client.js";

const PAGE = 50;
const PURPOSES = [["", "All"], ["batch", "Input"], ["batch_output", "Output"]];
const WORDS = { batch: "Input", batch_output: "Output" };

export async function filesPage(place, { client, may, query, signal, tell }) {
  const purpose = query.get("purpose") ?? "";
  const after = query.get("after");
  const address = (changes) => {
    const next = new URLSearchParams(Object.entries({ purpose, ...changes }).filter(([, value]) => value));
    return `#/files${next.size ? `?${next}` : ""}`;
  };
  const filter = select(PURPOSES, { value: purpose, "data-key": "kind", onchange: () => { location.hash = address({ purpose: filter.value }); } });
  const list = h("div.awaited");
  const pages = h("div.pages");
  place.append(h("div.tools", field("Kind", filter), may("write")
    && h("a.button.primary.last", { href: "#/new" }, "New batch")), list, pages);

  const load = async () => {
    const found = await client.get("v1/files", { purpose, after, limit: PAGE }, signal);
    draw(list, found.data, () => table({ caption: "Files, newest first", empty: "There are no files.",
      columns: ["Name:wide", "Kind", "Size:number", "Created", "Expires", "Actions"],
      rows: found.data.map(row) }));
    turn(pages, found, after, (last) => address({ after: last }));
  };

  function row(file) {
    return [h("div", h("strong", data(file.filename)), h("div.quiet", brief(file.id))), WORDS[file.purpose]
      ?? data(file.purpose), bytes(file.bytes),
      time(file.created_at), file.expires_at ? time(file.expires_at) : "never",
      h("div.actions", button("Download", () => client.download(file),
        { kind: "small", key: `get-${file.id}` }),
        may("write") && file.purpose === "batch"
          && h("a.button.small", { href: `#/new?file=${encodeURIComponent(file.id)}` }, "Use"),
        may("write") && button("Delete…", remove(file), { kind: "small danger", key: `delete-${file.id}` }))];
  }

  const remove = (file) => async () => {
    const sure = await ask({ title: "Delete this file?", danger: true, action: "Delete", cancel: "Keep it",
      work: () => client.delete(`v1/files/${encodeURIComponent(file.id)}`),
      content: [h("p", data(file.filename)),
        h("p", "It cannot be taken back. Batches that run go on; the failed lines of a final batch cannot be retried without its input.")] });
    if (!sure) return;
    toast("The file is deleted.");
    await load();
  };
  await every(15, { signal, tell }, load);
}
