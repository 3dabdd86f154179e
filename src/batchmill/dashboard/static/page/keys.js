// The organisation's keys: who has which, and making, changing and ending them.

import { ask, brief, button, data, draw, field, h, notice, select, table, toast, turn } from "../dom.js";
import { mark, now, time } from "../format.js";
import { showSecret } from "./secret.js";

const PAGE = 50;
const SCOPES = [["read", "See everything"], ["write", "Upload, create, steer, delete"],
  ["admin", "Make and end keys, see which key used what"]];
const LASTS = [["", "For ever"], ["30d", "30 days"], ["90d", "90 days"], ["365d", "A year"]];
const OVERLAPS = [["24h", "A day more"], ["7d", "A week more"], ["0", "Not at all"]];

export async function keysPage(place, { client, me, may, query, signal }) {
  const after = query.get("after");
  const list = h("div.awaited");
  const pages = h("div.pages");
  place.append(h("div.tools", may("write") && button("New key…", make, { kind: "primary" })), list, pages);

  async function load() {
    const found = await client.get("v1/keys", { after, limit: PAGE }, signal);
    draw(list, found.data, (keys) => table({ caption: "Keys", empty: "There are no keys.",
      columns: ["State", "Name:wide", "Begins with", "Scopes", "Created", "Expires", "Actions"],
      rows: keys.map(row) }));
    turn(pages, found, after, (last) => `#/keys${last ? `?after=${last}` : ""}`);
  }

  function row(key) {
    const expired = key.expires_at && key.expires_at <= now();
    const live = !key.revoked_at && !expired;
    return [key.revoked_at ? mark("off", "Revoked") : expired ? mark("off", "Expired") : mark("good", "Good"),
      h("div", h("strong", data(key.name ?? "no name")), key.id === me.key_id && h("span.tag", "in use here"),
        h("div.quiet", brief(key.id))), key.hint
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
    let made = null;
    const work = async () => {
      const scopes = boxes.filter(([, box]) => box.checked).map(([scope]) => scope);
      if (!scopes.length) throw new Error("A key needs a scope.");
      made = await client.post("v1/keys", { ...(name.value.trim() && { name: name.value.trim() }), scopes,
        ...(lasts.value && { expires_in: lasts.value }) });
    };
    await ask({ title: "New key", action: "Make the key", work,
      content: [field("Name", name, "What the key is for, in your words."),
      h("fieldset", h("legend", "Scopes"),
        boxes.map(([scope, box, words]) =>
        h("div.check", box, h("label", { for: box.id }, h("strong", scope), ` ${words}`)))), field("Good", lasts)] });
    if (made) await tell(made);
  }

  const rotate = (key) => async () => {
    const overlap = select(OVERLAPS);
    const mine = key.id === me.key_id;
    let made = null;
    const work = async () => {
      made = await client.post(`v1/keys/${encodeURIComponent(key.id)}/rotate`, { overlap: overlap.value });
    };
    await ask({ title: "Rotate this key?", action: "Rotate", work,
      content: [h("p", "A new key like ", h("strong", data(key.name ?? key.id)), " is made."),
      field("The old key is good", overlap),
      mine && h("p", "It is the one that you use here: enter the new one before it ends.")] });
    if (made) await tell(made);
  };

  const revoke = (key) => async () => {
    const sure = await ask({ title: "Revoke this key?", danger: true, action: "Revoke", cancel: "Keep it",
      work: () => client.post(`v1/keys/${encodeURIComponent(key.id)}/revoke`),
      content: [key.id === me.key_id && notice("warn", "It is the key that you use here: you will be asked for another."),
        h("p", "The next request with ", h("strong", data(key.name ?? key.id)),
        " is refused. It cannot be taken back.")] });
    if (!sure) return;
    toast("The key is revoked.");
    await load();
  };

  /** Show a new key, this once. */
  async function tell(made) {
    await load();
    await showSecret({ title: "The new key", label: "Key", secret: made.key });
  }
  await load();
}
