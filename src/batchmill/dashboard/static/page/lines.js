// The lines of a batch, page by page: the prompt and what came of it, side by side.

import { button, data, draw, field, h, notice, select } from "../dom.js";
import { count, mark } from "../format.js";
import { answered, asked, succeeded } from "../words.js";

const PAGE = 20;
const LONG = 1500; // characters of a text that are shown at first
const QUESTIONS = 20; // for one page: rare lines may be far apart
const ASKED = 7000; // characters of a query: a server takes 8 KiB of an address

/** Return the browser of a batch's lines: `node`, `show(filter)`, `groups(list)` of errors, `look()` for new lines. */
export function linesBrowser({ client, id, signal, title = "Lines", retried = true }) {
  const at = [null]; // the cursors of the pages until this one
  let filter = "";
  let merged = false;
  let loads = 0;
  let page = null; // its lines, their requests, the cursor behind them, whether more will come; undefined: try again
  const met = []; // groups of errors
  let there = []; // what the articles that are shown are of
  const choice = select([], { onchange: () => show(choice.value) });
  const children = h("input",
    { type: "checkbox", id: "merged", onchange: () => { merged = children.checked; show(filter); } });
  const told = h("div", { "aria-live": "polite", class: "quiet" });
  const list = h("div.lines");
  const turn = h("div.pages");
  const tools = h("div.tools", field("Show", choice), retried
    && h("div.check", children, h("label", { for: "merged" }, "With what retries made of failed lines")));
  const node = h("section", { "aria-labelledby": "lines" }, h("h2", { id: "lines", tabindex: -1 }, title), tools, told,
    list, turn);

  /** Offer groups of errors to be shown, in the order in which they were first seen: which is largest changes. */
  function groups(found) {
    for (const { id: group } of found) if (!met.includes(group)) met.push(group);
    found = [...found].sort((a, b) => met.indexOf(a.id) - met.indexOf(b.id));
    const fixed = [["", "All lines"], ["succeeded", "Succeeded"], ["failed", "Failed"]];
    const each = found.map(({ id: group, message, code, status }) =>
      [`group:${group}`, `Failed: ${[status, code, message].filter(Boolean).join(" · ").slice(0, 90)}`]);
    draw(choice, [fixed, each], () => [...fixed, ...each].map(([value, words]) => h("option", { value }, words)));
    choice.value = filter;
  }

  /** Ask until the page is full, or there is no more now: a server's page may be shorter than what was asked for. */
  async function filled({ lines, next, requests }) {
    const fresh = [];
    const found = { next, more: true, whole: false };
    for (let asked = 0; found.more && lines.length + fresh.length < PAGE && asked < QUESTIONS; asked += 1) {
      const query = { after: found.next, limit: PAGE - lines.length - fresh.length, merged: merged || null };
      if (filter.startsWith("group:")) query.error_group = filter.slice(6);
      else query.status = filter;
      const part = await client.lines(`v1/batches/${encodeURIComponent(id)}/results`, query, signal);
      fresh.push(...part.lines);
      found.next = part.headers.get("x-next-cursor");
      found.more = part.headers.get("x-has-more") === "true";
      found.whole = part.headers.get("x-complete") === "true";
    }
    return { ...found, lines: [...lines, ...fresh], requests: new Map([...requests, ...await inputs(fresh)]) };
  }

  /** Load the page, or what has come to it since it was shown. */
  async function load(before = { lines: [], next: at.at(-1), requests: new Map() }) {
    loads += 1;
    const mine = loads;
    try {
      const found = await filled(before);
      if (mine !== loads) return; // another page was asked for meanwhile
      page = found;
      const { lines, whole, next } = page;
      lay(lines, page.requests);
      told.textContent = lines.length ? "" : whole ? "No such lines." : "No such lines yet.";
      const more = page.more || !whole && lines.length === PAGE;
      draw(turn, [at.length, more, next], () => [
        at.length > 1 && button("Previous lines", () => { at.pop(); return move(); }),
        more && button("Next lines", () => { at.push(next); return move(); }),
        button("Look again", () => load())]);
    } catch (fault) {
      if (fault.name === "AbortError" || mine !== loads || before === page && fault.passing) return;
      [page, there] = [fault.passing ? undefined : null, []];
      list.replaceChildren(fault.missing
        ? notice("info", "This server does not show lines before the files are there: download them instead.")
        : notice(fault.passing ? "bad" : "info", data(fault.message)));
      draw(turn, fault.message, () => fault.passing && button("Try again", () => load()));
    }
  }

  /** Show lines; those that are there already stay as they are, opened or not. */
  function lay(lines, requests) {
    const wanted = lines.map((line) => [line.text, requests.get(line.value?.custom_id)?.text].join("\n"));
    const changed = wanted.findIndex((each, i) => each !== there[i]);
    const kept = changed < 0 ? wanted.length : changed;
    if (!there.length) list.replaceChildren();
    while (list.children.length > kept) list.lastElementChild.remove();
    list.append(...lines.slice(kept).map((line) => article(line, requests)));
    there = wanted;
  }

  async function move() {
    await load();
    node.querySelector("h2").focus();
  }

  /** Return the lines of input by custom_id; none, where the input is gone or the server does not give them. */
  async function inputs(lines) {
    const ids = [...new Set(lines.map(({ value }) => value?.custom_id).filter((each) => typeof each === "string"))];
    if (!ids.length) return new Map();
    const requests = new Map();
    try {
      for (const some of portions(ids)) {
        const found = await client.lines(`v1/batches/${encodeURIComponent(id)}/requests`, { custom_id: some }, signal);
        for (const line of found.lines) requests.set(line.value?.custom_id, line);
      }
      return requests;
    } catch (fault) {
      if (fault.status === 404 || fault.missing) return new Map();
      throw fault;
    }
  }

  function show(next) {
    filter = next;
    choice.value = next;
    at.splice(1);
    return load();
  }
  /** Load what may have come to the page, or all of it if that failed and may go now. */
  const look = async () => {
    if (page === undefined) await load();
    else if (page && !page.whole && page.lines.length < PAGE) await load(page);
  };
  groups([]);
  return { node, show, groups, look };
}

/** Return ids in portions, each of which fits into an address. */
function portions(ids) {
  const all = [[]];
  let length = 0;
  for (const id of ids) {
    const more = String(new URLSearchParams([["custom_id", id]])).length + 1;
    if (length + more > ASKED) [length] = [0, all.push([])];
    all.at(-1).push(id);
    length += more;
  }
  return all;
}

/** Return a line: its prompt, what came of it, and both as they were sent. */
function article({ text, value }, requests) {
  const request = requests.get(value?.custom_id);
  const good = succeeded(value);
  const raw = h("details", { ontoggle: () => raw.open && raw.lastChild.replaceChildren(h("h4", "Request"),
    h("pre", { tabindex: 0 }, data(request?.text ?? "The input is not there.")), h("h4", "Result"),
      h("pre", { tabindex: 0 }, data(text))) },
  h("summary", "Raw JSON"), h("div"));
  return h("article.line",
    h("header", h("h3", data(value?.custom_id ?? "no custom_id")), good ? mark("good", "Succeeded")
      : mark("bad", "Failed")),
    h("div.sides",
      h("div", h("h4", "Prompt"), request ? said(asked(request.value)) : h("p.quiet", "The input is not there.")),
      h("div", h("h4", good ? "Answer" : "Error"), said(answered(value)))),
    raw);
}

const said = (pairs) => pairs.map(([role, words]) => {
  const text = h("p.words", { dir: "auto" }, data(words.slice(0, LONG)));
  const all = () => { text.replaceChildren(data(words)); more.remove(); };
  const more = h("button.small", { type: "button", onclick: all }, `Show all ${count(words.length)} characters`);
  return h("div.said", role && h("span.role", data(role)), text, words.length > LONG && more);
});
