// The organisation's keys: who has which, and making, changing and ending them.

import { ask, brief, button, data, draw, field, h, notice, select, table, toast } from "../dom.js";
import { mark, now, time } from "../format.js";

const SCOPES = [["read", "See everything"], ["write", "Upload, create, steer, delete"],
  ["admin", "See usage, make and end keys"]];
const LASTS = [["", "For ever"], ["30d", "30 days"], ["90d", "90 days"], ["365d", "A year"]];
const OVERLAPS = [["24h", "A day more"], ["7d", "A week more"], ["0", "Not at all"]];

export async function keysPage(place, { client, may, signal }) {
  const list = h("div");
  place.append(h("div.tools", may("write") && button("New key…", make, { kind: "primary" })), list);

  async function load() {
    const found = await client.get("v1/keys", {}, signal);
    draw(list, found.data, (keys) => table({ caption: "Keys", empty: "There are no keys.",
      columns: ["State", "Name:wide", "Begins with", "Scopes", "Created", "Expires", "Actions"],
      rows: keys.map(row) }));
  }

  function row(key) {
    const expired = key.expires_at && key.expires_at <= now();
    const live = !key.revoked_at && !expired;
    return [key.revoked_at ? mark("off", "Revoked") : expired ? mark("off", "Expired") : mark("good", "Good"),
      h("div", h("strong", data(key.name ?? "no name")), h("div.quiet", brief(key.id))), key.hint
        && h("code", data(`sk-bm-${key.hint}…`)), key.scopes.map((scope) => h("span.tag", data(scope))),
      time(key.created_at), key.expires_at ? time(key.expires_at) : "never",
      live && h("div.actions", button("Rotate…", rotate(key), { kind: "small", key: `rotate-${key.id}` }),
        button("Revoke…", revoke(key), { kind: "small danger", key: `revoke-${key.id}` }))];
  }

  async function make() {
    const name = h("input", { maxlength: 100, autocomplete: "off" });
    const lasts = select(LASTS);
    const boxes = SCOPES.map(([scope, words]) =>
      [scope, h("input", { type: "checkbox", id: `scope-${scope}`, checked: scope !== "admin" }), words]);
    const chosen = await ask({ title: "New key", action: "Make the key",
      content: [field("Name", name, "What the key is for, in your words."),
      h("fieldset", h("legend", "Scopes"),
        boxes.map(([scope, box, words]) =>
        h("div.check", box, h("label", { for: box.id }, h("strong", scope), ` ${words}`)))), field("Good", lasts)] });
    if (!chosen) return;
    const scopes = boxes.filter(([, box]) => box.checked).map(([scope]) => scope);
    if (!scopes.length) throw new Error("A key needs a scope.");
    await tell(await client.post("v1/keys",
      { ...(name.value.trim() && { name: name.value.trim() }), scopes,
      ...(lasts.value && { expires_in: lasts.value }) }));
  }

  const rotate = (key) => async () => {
    const overlap = select(OVERLAPS);
    const sure = await ask({ title: "Rotate this key?", action: "Rotate",
      content: [h("p", "A new key like ", h("strong", data(key.name ?? key.id)), " is made."),
      field("The old key is good", overlap)] });
    if (sure) await tell(await client.post(`v1/keys/${encodeURIComponent(key.id)}/rotate`, { overlap: overlap.value }));
  };

  const revoke = (key) => async () => {
    const sure = await ask({ title: "Revoke this key?", danger: true, action: "Revoke", cancel: "Keep it",
      content: h("p", "The next request with ", h("strong", data(key.name ?? key.id)),
        " is refused. It cannot be taken back.") });
    if (!sure) return;
    await client.post(`v1/keys/${encodeURIComponent(key.id)}/revoke`);
    toast("The key is revoked.");
    await load();
  };

  /** Show a new key, this once. */
  async function tell(made) {
    const shown = h("input", { value: made.key, readonly: true, class: "mono", onfocus: () => shown.select() });
    await ask({ title: "The new key", action: "I have kept it", cancel: null,
      content: [notice("warn", "It is shown only now, and kept nowhere."), field("Key", shown),
      button("Copy", async () => { shown.select(); await copy(made.key); toast("Copied."); }, { kind: "small" })] });
    shown.value = "";
    await load();
  }
  await load();
}

/** Copy a text; where the page is not on https or localhost, the browser has the old way alone. */
async function copy(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else if (!document.execCommand("copy")) throw new Error("The browser does not copy: mark the key and copy it yourself.");
}
