// Starts the dashboard: asks for the key, draws the frame, and shows the page that the address names.

import { Client, pause } from "./client.js";
import { button, data, draw, field, h, notice, select } from "./dom.js";
import { backendsPage } from "./page/backends.js";
import { batchPage } from "./page/batch.js";
import { batchesPage } from "./page/batches.js";
import { filesPage } from "./page/files.js";
import { keysPage } from "./page/keys.js";
import { newPage } from "./page/new.js";
import { usagePage } from "./page/usage.js";
import { webhookPage, webhooksPage } from "./page/webhooks.js";
import { zone } from "./format.js";

const KEY = "batchmill.key"; // in sessionStorage: gone with the tab
const THEME = "batchmill.theme"; // in localStorage
const HOME = "batches";
const PAGES = {
  batches: { words: "Batches", show: batchesPage, one: batchPage, single: "Batch" },
  new: { words: "New batch", show: newPage },
  files: { words: "Files", show: filesPage },
  backends: { words: "Models and backends", show: backendsPage },
  usage: { words: "Usage", show: usagePage },
  webhooks: { words: "Webhooks", show: webhooksPage, one: webhookPage, single: "Webhook" },
  keys: { words: "Keys", show: keysPage, admin: true },
};
const AGAIN = 3; // seconds until a server that is away at the start is asked again
const LATE = 3000; // milliseconds in which a page that is come back to is as long as it was, or is left where it is

let leaving = new AbortController(); // of the page that is shown
let me = null; // who the key is, {name, scopes, limits}; scopes are null where the server does not say
let client = null;
let shown = {}; // the route of the page that is shown
let entry = 0; // of the tab's history: the one that is shown
const depths = new Map(); // of each entry that was left: how far down it was

/** Return where the address points: `#/batches/batch_1?status=failed` is {name, id, query}. */
function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/").map(decoded);
  return { name: PAGES[name] ? name : HOME, id: PAGES[name]?.one ? id : undefined, query: new URLSearchParams(query) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // no address of ours
  }
}

const may = (scope) => me.scopes === null || me.scopes.includes(scope);

/** Show the page of the address; `depth` is how far down it was when it was left. */
async function show(depth = 0) {
  leaving.abort(new DOMException("Another page is shown.", "AbortError"));
  leaving = new AbortController();
  for (const dialog of document.querySelectorAll("dialog:not([closedby='none'])")) dialog.close();
  const { name, id, query } = route();
  const same = shown.name === name && shown.id === id; // filtered or turned: who chose it goes on from there
  const key = same && document.activeElement?.closest("main [data-key]")?.dataset.key;
  shown = { name, id };
  const { show: page, one, admin, single } = PAGES[name];
  const words = id ? single : PAGES[name].words;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = h("h1", { tabindex: -1 }, words);
  const main = document.getElementById("main");
  const trouble = h("div");
  const tell = (fault, more = null) => draw(trouble, [fault?.message ?? null, Boolean(more)],
    ([text]) => text && notice("bad", data(text), more));
  const place = h("div.page");
  main.replaceChildren(h("header.title", heading), trouble, place);
  document.title = `${id ? `${words} …${id.slice(-6)}` : words} · Batchmill`;
  heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
  descend(depth);
  if (admin && !may("admin")) {
    place.append(notice("info", "This page is for keys with the scope admin, which this key lacks."));
    return;
  }
  try {
    const ended = (id ? one : page)(place, { client, me, may, id, query, heading, tell, signal: leaving.signal });
    if (key) [...place.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus();
    await ended;
  } catch (fault) {
    if (fault.name === "AbortError" || !place.isConnected) return;
    place.classList.add("ended");
    if (fault.missing) place.prepend(notice("info",
      `This server does not offer “${words}”: it is older, or it is switched off there.`));
    else tell(fault, [" ", button("Try again", () => show(), { kind: "small" })]);
    if (fault.name !== "Fault") throw fault; // a fault of ours: the console tells where
  }
}

/** Go as far down as the page was, as soon as it is so long again; not if someone has begun to scroll. */
function descend(depth) {
  if (!depth) return;
  const { signal } = leaving;
  const main = document.getElementById("main");
  const grown = new ResizeObserver(() => {
    if (document.documentElement.scrollHeight - innerHeight < depth) return;
    window.scrollTo(0, depth);
    grown.disconnect();
  });
  const end = () => grown.disconnect();
  grown.observe(main);
  setTimeout(end, LATE);
  for (const event of ["wheel", "touchmove", "keydown"]) window.addEventListener(event, end, { signal, passive: true });
  signal.addEventListener("abort", end);
}

/** Show another entry of the tab's history, a new one from its top. */
function move() {
  depths.set(entry, window.scrollY);
  entry = history.state?.entry ?? Date.now();
  if (!history.state) history.replaceState({ entry }, "");
  if (client) show(depths.get(entry));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
}

function forget(reason = null) {
  sessionStorage.removeItem(KEY);
  leaving.abort(new DOMException("The key is forgotten.", "AbortError"));
  client = me = null;
  enter(reason);
}

function themes() {
  const node = select([["system", "System"], ["light", "Light"], ["dark", "Dark"]],
    { value: document.documentElement.dataset.theme, "aria-label": "Colours", onchange: () => setTheme(node.value) });
  return node;
}

const brand = () => h("span.brand", h("span.logo", { "aria-hidden": "true" }), "Batchmill");
const corners = () => [
  h("div.corner", h("div", { id: "toasts", role: "status" }), h("div", { id: "alerts", role: "alert" })),
  h("div.unseen", { id: "said", "aria-live": "polite" }),
];

/** Draw the frame and the first page. */
function open() {
  const links = Object.entries(PAGES).filter(([, page]) => !page.admin || may("admin")).map(([name, page]) =>
    h("li", h("a", { href: `#/${name}`, "data-page": name }, page.words)));
  const main = h("main", { id: "main", tabindex: -1 });
  const skip = h("a.skip", { href: "#main", onclick: (event) => { event.preventDefault(); main.focus(); } },
    "Skip to the page");
  document.body.replaceChildren(skip,
    h("header.frame", brand(), h("nav", { "aria-label": "Pages" }, h("ul", links)),
      h("div.who", h("p.org", h("span.unseen", "Organisation: "), data(me.name ?? "Your organisation")),
        themes(), button("Forget key", () => forget(), { kind: "small" }), h("a", { href: "docs" }, "API reference"),
        h("p.hint", `Times: ${zone()}`))),
    main, ...corners());
  show();
}

/** Return who a key is; an older server does not say, and is asked for anything instead. */
async function whoIs(asking) {
  try {
    return await asking.get("v1/organisation");
  } catch (fault) {
    if (!fault.missing) throw fault;
    await asking.get("v1/models");
    return { name: null, scopes: null, limits: {} };
  }
}

async function use(key) {
  const asking = new Client({ key, refused: () => client === asking
    && forget("The server does not take this key any more.") });
  me = await whoIs(asking);
  client = asking;
}

/** Ask for the key. */
function enter(reason) {
  document.title = "Key · Batchmill";
  const told = h("div");
  const tell = (text) => draw(told, text, () => text && notice("bad", data(text)));
  const input = h("input",
    { type: "password", id: "key", autocomplete: "off", spellcheck: "false", required: true, placeholder: "sk-bm-…" });
  const form = h("form.card.enter", { onsubmit: async (event) => {
    event.preventDefault();
    const key = input.value.trim();
    try {
      if (!/^[\x21-\x7e]+$/.test(key)) throw new Error("This is no key: one begins with sk-bm- and has no spaces in it.");
      await use(key);
      sessionStorage.setItem(KEY, key);
      open();
    } catch (fault) {
      tell(fault.status === 401 ? "The server does not take this key." : fault.message);
      input.focus();
    }
  } }, h("h1", brand()), h("p", "Enter an API key to see and steer the batches of its organisation."), told,
  field("API key", input, "It is kept in this tab until you close it, and never in an address."),
  h("button.primary", { type: "submit" }, "Continue"), themes());
  document.body.replaceChildren(h("main.entrance", { id: "main" }, form), ...corners());
  tell(reason);
  input.focus();
}

async function start() {
  document.documentElement.dataset.theme = localStorage.getItem(THEME) ?? "system";
  history.scrollRestoration = "manual";
  move();
  window.addEventListener("hashchange", move);
  const key = sessionStorage.getItem(KEY);
  if (!key) return enter(null);
  const { signal } = leaving;
  for (;;) {
    try {
      await use(key);
      return signal.aborted ? undefined : open();
    } catch (fault) {
      if (fault.status === 401) return forget("The server does not take this key any more.");
      if (!fault.passing) return enter(fault.message);
      wait(fault);
      await pause(Math.max(AGAIN, fault.wait), signal);
    }
  }
}

/** Tell of a server that is away at the start; the key is kept, and it is asked again. */
function wait(fault) {
  document.title = "Waiting · Batchmill";
  let told = document.getElementById("waiting");
  if (!told) {
    told = h("div", { id: "waiting" });
    document.body.replaceChildren(h("main.entrance", { id: "main" }, h("div.card.enter", h("h1", brand()), told,
      h("p", { role: "status" }, "It is asked again every few seconds, with the key of this tab."),
      button("Forget key", () => forget(), { kind: "small" }))), ...corners());
  }
  draw(told, fault.message, (text) => notice("bad", data(text)));
}

start().catch((fault) => { if (fault.name !== "AbortError") throw fault; });
