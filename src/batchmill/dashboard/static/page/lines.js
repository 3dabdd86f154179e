// The lines of a batch, page by page: the prompt and what came of it, side by side.

import { data, draw, field, h, notice, select } from "../dom.js";
import { mark } from "../format.js";
import { answered, asked, succeeded } from "../words.js";

const PAGE = 20;
const ASKED = 7000; // characters of a query: a server takes 8 KiB of an address

/** Return the browser of a batch's lines: `node`, `show(filter)`, `groups(list)` as there are, `look()` for new lines. */
export function linesBrowser({ client, id, signal, title = "Lines", retried = true }) {
  const at = [null]; // the cursors of the pages until this one
  let filter = "";
  let merged = false;
  let open = true; // more lines may come to the page that is shown
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

  function groups(found) {
    const fixed = [["", "All lines"], ["succeeded", "Succeeded"], ["failed", "Failed"]];
    const each = found.map(({ id: group, message, code, status }) =>
      [`group:${group}`, `Failed: ${[status, code, message].filter(Boolean).join(" · ").slice(0, 90)}`]);
    draw(choice, [fixed, each], () => [...fixed, ...each].map(([value, words]) => h("option", { value }, words)));
    choice.value = filter;
  }

  async function load() {
    const query = { after: at.at(-1), limit: PAGE, merged: merged || null };
    if (filter.startsWith("group:")) query.error_group = filter.slice(6);
    else query.status = filter;
    try {
      const page = await client.lines(`v1/batches/${encodeURIComponent(id)}/results`, query, signal);
      const requests = await inputs(page.lines);
      list.replaceChildren(...page.lines.map((line) => article(line, requests)));
      const more = page.headers.get("x-has-more") === "true";
      const whole = page.headers.get("x-complete") === "true";
      open = !whole && page.lines.length < PAGE;
      told.textContent = page.lines.length ? "" : whole ? "No such lines." : "No such lines yet.";
      turn.replaceChildren(
        ...(at.length > 1 ? [h("button", { type: "button", onclick: () => { at.pop(); move(); } }, "Previous lines")]
          : []),
        ...(more ? [h("button",
          { type: "button", onclick: () => { at.push(page.headers.get("x-next-cursor")); move(); } }, "Next lines")]
          : []),
        h("button", { type: "button", onclick: () => load() }, "Look again"));
    } catch (fault) {
      if (fault.name === "AbortError") return;
      list.replaceChildren(fault.missing
        ? notice("info", "This server does not show lines before the files are there: download them instead.")
        : notice("bad", data(fault.message)));
    }
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
  /** Load the page again if lines may have come to it, and nobody reads one of them closely. */
  const look = async () => { if (open && !list.querySelector("details[open]")
    && !list.contains(document.activeElement)) await load(); };
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

const said = (pairs) =>
  pairs.map(([role, words]) =>
  h("div.said", role && h("span.role", data(role)), h("p.words", { dir: "auto" }, data(words))));
