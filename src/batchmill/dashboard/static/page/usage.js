// What was used, by day, key and model, and what the budgets leave.

import { bars } from "../chart.js";
import { count, money, share, short, time } from "../format.js";
import { brief, button, data, field, h, table } from "../dom.js";

const DAY = 86_400_000;
const PAGES = 10; // of a thousand rows each
const ROWS = 200; // of the table are shown at first
const BUDGETS = { tokens_per_day: "Tokens a day", enqueued_tokens: "Tokens that wait", batch_cost: "Cost of a batch" };
const day = (ms) => new Date(ms).toISOString().slice(0, 10);

export async function usagePage(place, { client, may, query, signal }) {
  const from = h("input", { type: "date", value: query.get("from") ?? day(Date.now() - 29 * DAY) });
  const to = h("input", { type: "date", value: query.get("to") ?? day(Date.now()) });
  const go = (event) => {
    event.preventDefault();
    if (from.value && to.value) location.hash = `#/usage?from=${from.value}&to=${to.value}`;
  };
  place.append(h("form.tools", { onsubmit: go }, field("From", from), field("To", to),
    h("button", { "data-key": "days" }, "Show these days"), h("p.hint", "Days are those of UTC.")));
  const loading = h("div.awaited");
  place.append(loading);
  const usage = await whole(client, { from: from.value, to: to.value }, signal);
  loading.remove();
  const chart = bars({ title: "Tokens", unit: "a day", words: short });
  const sum = (name) => usage.data.reduce((all, row) => all + row[name], 0);
  place.append(
    h("dl.tiles", [["Requests", count(sum("requests"))], ["Failed", count(sum("failed"))],
      ["Input tokens", short(sum("input_tokens"))],
      ["Output tokens", short(sum("output_tokens"))], ["Cost", money(total(usage.data))]].filter(([, value]) => value)
      .map(([name, value]) => h("div", h("dt", name), h("dd", value)))),
    budgets(usage.budgets ?? []),
    usage.data.length ? chart.node : "",
    usage.has_more ? h("p", "There is more than is shown and summed up here: ask for fewer days.") : "",
    rowsOf(usage.data, may("admin")));
  if (usage.data.length) chart.show(days(usage));
}

/** Return what was used, page after page; of very much the oldest, and `has_more` says so. */
async function whole(client, query, signal) {
  const usage = await client.get("v1/usage", query, signal);
  for (let n = 1; usage.has_more && n < PAGES; n++) {
    const page = await client.get("v1/usage", { ...query, after: usage.last_id }, signal);
    usage.data.push(...page.data);
    Object.assign(usage, { last_id: page.last_id, has_more: page.has_more });
  }
  return usage;
}

/** Return the table of the rows, the latest day first; whose they are is told to admin keys alone. */
function rowsOf(found, byKey) {
  const rows = [...found].sort((a, b) => b.day.localeCompare(a.day));
  const list = h("div");
  const columns = ["Day:day", byKey && "Key", "Model:name", "Requests:number", "Failed:number", "Input:number",
    "Cached:number", "Output:number", "Reasoning:number", "Cost:number"].filter(Boolean);
  const lay = (some) => list.replaceChildren(table({ caption: "Usage, the latest day first", columns,
    empty: "Nothing was used in these days.", rows: some.map((row) => [row.day,
      ...(byKey ? [row.key_name ? data(row.key_name) : row.key_id && brief(row.key_id)] : []),
      data(row.model), count(row.requests), count(row.failed), short(row.input_tokens), short(row.cached_tokens),
      short(row.output_tokens), short(row.reasoning_tokens), money(row.cost)]) }));
  lay(rows.slice(0, ROWS));
  const all = rows.length > ROWS && button(`Show all ${count(rows.length)} rows`, () => { lay(rows); all.remove(); });
  return h("section", h("h2", byKey ? "By day, key and model" : "By day and model"), list,
    all && h("div.pages", all),
    !byKey && h("p.hint", "Which key it was is told to keys with the scope admin."));
}

function total(rows) {
  const costs = rows.map((row) => row.cost).filter(Boolean);
  return costs.length ? { amount: costs.reduce((all, cost) => all + cost.amount, 0), currency: costs[0].currency }
    : null;
}

/** Return the tokens of every day, those without any included. */
function days({ from, to, data: rows }) {
  const sums = new Map();
  for (let ms = Date.parse(from); ms <= Date.parse(to); ms += DAY) sums.set(day(ms), 0);
  for (const row of rows) sums.set(row.day, (sums.get(row.day) ?? 0) + row.input_tokens + row.output_tokens);
  return [...sums];
}

function budgets(all) {
  if (!all.length) return h("p.quiet", "No budget is set.");
  return h("section", h("h2", "Budgets"),
    table({ caption: "Budgets", columns: ["Budget", "Used:number", "Limit:number", "Share:wide", "Begins anew"],
    rows: all.map(({ kind, model, limit, used, resets_at, currency }) =>
      [h("span", BUDGETS[kind] ?? data(kind), model && h("span.tag", data(model))),
      used === undefined ? null : short(used), currency ? money({ amount: limit, currency }) : short(limit), used === undefined ? null
        : h("span", h("meter",
        { min: 0, max: limit, high: limit * 0.9, value: Math.min(used, limit),
        "aria-label": `Used of ${BUDGETS[kind] ?? kind}` }), ` ${share(used, limit)}`),
      resets_at ? time(resets_at) : null]) }));
}
