// Starts the dashboard: asks for the key, draws the frame, and shows the page that the address names.

import { Client } from "./client.js";
import { button, data, draw, field, h, notice, select } from "./dom.js";
import { backendsPage } from "./page/backends.js";
import { batchPage } from "./page/batch.js";
import { batchesPage } from "./page/batches.js";
import { filesPage } from "./page/files.js";
import { keysPage } from "./page/keys.js";
import { newPage } from "./page/new.js";
import { usagePage } from "./page/usage.js";

const KEY = "batchmill.key"; // in sessionStorage: gone with the tab
const THEME = "batchmill.theme"; // in localStorage
const HOME = "batches";
const PAGES = {
  batches: { words: "Batches", show: batchesPage, one: batchPage },
  new: { words: "New batch", show: newPage },
  files: { words: "Files", show: filesPage },
  backends: { words: "Models and backends", show: backendsPage },
  usage: { words: "Usage", show: usagePage, admin: true },
  keys: { words: "Keys", show: keysPage, admin: true },
};

let leaving = new AbortController(); // of the page that is shown
let me = null; // who the key is, {name, scopes, limits}; scopes are null where the server does not say
let client = null;

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

async function show() {
  leaving.abort(new DOMException("Another page is shown.", "AbortError"));
  leaving = new AbortController();
  const { name, id, query } = route();
  const { words, show: page, one, admin } = PAGES[name];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = h("h1", { tabindex: -1 }, id ? "Batch" : words);
  const main = document.getElementById("main");
  const trouble = h("div");
  const tell = (fault) => draw(trouble, fault?.message ?? null, (text) => text && notice("bad", data(text)));
  const place = h("div.page");
  main.replaceChildren(h("header.title", heading), trouble, place);
  document.title = `${id ? "Batch" : words} · Batchmill`;
  heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
  if (admin && !may("admin")) {
    place.append(notice("info", "This page is for keys with the scope admin, which this key lacks."));
    return;
  }
  try {
    await (id ? one : page)(place, { client, me, may, id, query, heading, tell, signal: leaving.signal });
  } catch (fault) {
    if (fault.name === "AbortError" || !place.isConnected) return;
    if (fault.missing) place.prepend(notice("info",
      `This server does not offer “${words}”: it is older, or it is switched off there.`));
    else tell(fault);
    if (fault.name !== "Fault") throw fault; // a fault of ours: the console tells where
  }
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
        themes(), button("Forget key", () => forget(), { kind: "small" }), h("a", { href: "docs" }, "API reference"))),
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
  window.addEventListener("hashchange", () => client && show());
  const key = sessionStorage.getItem(KEY);
  if (!key) return enter(null);
  try {
    await use(key);
    return open();
  } catch (fault) {
    return fault.status === 401 ? forget("The server does not take this key any more.") : enter(fault.message);
  }
}

start();
