// All batches: their states, how far they are, and whether they will be done in time.

import { FINAL, STATUSES, count, duration, forecast, now, plural, state, time, wrongs } from "../format.js";
import { bar, brief, data, draw, field, h, select, table, turn } from "../dom.js";
import { every } from "../client.js";

const PAGE = 50;
const COLUMNS = ["State", "Batch:name", "Model:name", "Progress:wide", "End:wide", "Created"];

export async function batchesPage(place, { client, query, signal, tell }) {
  const status = query.get("status") ?? "";
  const after = query.get("after");
  const address = (changes) => {
    const next = new URLSearchParams(Object.entries({ status, ...changes }).filter(([, value]) => value));
    return `#/batches${next.size ? `?${next}` : ""}`;
  };
  const filter = select([["", "All states"], ...STATUSES],
    { value: status, "data-key": "state", onchange: () => { location.hash = address({ status: filter.value }); } });
  const search = h("input", { type: "search", oninput: () => show(), autocomplete: "off", spellcheck: "false" });
  const list = h("div.awaited");
  const pages = h("div.pages");
  let found = null;

  place.append(
    h("div.tools", field("State", filter), field("Find on this page", search),
      h("a.button.primary.last", { href: "#/new" }, "New batch")),
    list, pages);

  function show() {
    const words = search.value.trim().toLowerCase();
    const shown = found.data.filter((batch) => matches(batch, words));
    draw(list, shown, () => table({
      caption: "Batches, newest first", columns: COLUMNS, rows: shown.map(row),
      empty: words ? "No batch on this page has that in its id, model or metadata." : status || after
        ? "No batch is in this state." : "There are no batches yet. Make the first one with “New batch”.",
    }));
    turn(pages, found, after, (last) => address({ after: last }));
  }

  await every(5, { signal, tell }, async () => {
    found = await page(client, { status, after, limit: PAGE }, signal);
    show();
  });
}

/** Return a page of the list; an older server does not filter, so that it is done here. */
async function page(client, query, signal) {
  const found = await client.get("v1/batches", query, signal);
  if (query.status) found.data = found.data.filter((batch) => batch.status === query.status);
  return found;
}

function matches(batch, words) {
  const texts = [batch.id, batch.model, batch.endpoint, ...Object.entries(batch.metadata ?? {}).flat()];
  return texts.some((text) => text?.toLowerCase().includes(words));
}

function row(batch) {
  const { completed, failed, total } = batch.request_counts;
  const final = FINAL.has(batch.status);
  return [
    state(batch),
    h("div", h("a.id", { href: `#/batches/${encodeURIComponent(batch.id)}`, "data-key": batch.id }, brief(batch.id)),
      pairs(batch.metadata)),
    batch.model && data(batch.model),
    batch.errors ? h("span.bad-text", wrongs(batch.errors) === 1 ? data(batch.errors.data[0].message)
      : `${plural(wrongs(batch.errors), "error")} in the input`)
      : total ? h("div", bar({ done: completed, failed, total, label: `Progress of ${batch.id}` }),
      h("span.quiet", `${count(completed + failed)} of ${plural(total, "line")}`), failed
        ? h("span.bad-text", `, ${count(failed)} failed`) : null) : null,
    final ? end(batch) : h("div", forecast({ ...batch, ...batch.progress }), h("div", { class:
      batch.expires_at < now() + 3600 ? "warn-text" : "quiet" }, "deadline ", time(batch.expires_at))),
    time(batch.created_at),
  ];
}

/** Return when a final batch ended, and how long it took. */
function end(batch) {
  const at = batch[`${batch.status}_at`];
  return at && h("span.quiet", time(at), ` after ${duration(at - batch.created_at)}`);
}

/** Return metadata as small tags; in a table a long one is cut, and shows when one points at it. */
export const pairs = (metadata) => h("div.tags", Object.entries(metadata ?? {}).map(([name, value]) =>
  h("span.tag", { title: `${name}: ${value}` }, data(`${name}: ${value}`))));
