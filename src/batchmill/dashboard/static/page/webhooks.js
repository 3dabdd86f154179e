// Where the ends of batches are told: the organisation's webhooks, and the log of what was sent to one of them.

import { ask, brief, button, data, draw, field, h, table, toast, turn } from "../dom.js";
import { count, mark, time } from "../format.js";
import { every } from "../client.js";
import { showSecret } from "./secret.js";

const PAGE = 50;
const EVENTS = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"];
const STATES = { pending: ["busy", "Pending"], delivered: ["good", "Delivered"], failed: ["bad", "Failed"] };

const batchLink = (id) => h("a.id", { href: `#/batches/${encodeURIComponent(id)}`, "data-key": id }, brief(id));

export async function webhooksPage(place, { client, may, query, signal, tell }) {
  const after = query.get("after");
  const list = h("div.awaited");
  const pages = h("div.pages");
  place.append(h("div.tools", h("p.quiet", "A webhook is told when a batch has ended, signed as Standard Webhooks say."),
    may("write") && button("New webhook…", make, { kind: "primary last" })), list, pages);

  async function load() {
    const found = await client.get("v1/webhooks", { after, limit: PAGE }, signal);
    draw(list, found.data, (all) => table({ caption: "Webhooks, newest first", empty: "There are no webhooks.",
      columns: ["Address:wide", "Batches", "Events:name", "Created", "Actions"], rows: all.map(row) }));
    turn(pages, found, after, (id) => `#/webhooks${id ? `?after=${id}` : ""}`);
  }

  function row(hook) {
    return [h("div", h("strong", data(hook.url)), h("div.quiet", brief(hook.id))),
      hook.batch_id ? batchLink(hook.batch_id) : "all", hook.events.map((event) => h("span.tag", data(event))),
      time(hook.created_at),
      h("div.actions", h("a.button.small", { href: `#/webhooks/${encodeURIComponent(hook.id)}`,
        "data-key": `log-${hook.id}` }, "Log"),
      may("write") && button("Remove…", remove(hook), { kind: "small danger", key: `remove-${hook.id}` }))];
  }

  async function make() {
    const url = h("input", { type: "url", required: true, autocomplete: "off", spellcheck: "false" });
    const batch = h("input", { autocomplete: "off", spellcheck: "false", placeholder: "batch_…" });
    const boxes = EVENTS.map((event) => [event, h("input", { type: "checkbox", id: `event-${event}`, checked: true })]);
    let made = null;
    const work = async () => {
      const events = boxes.filter(([, box]) => box.checked).map(([event]) => event);
      if (!events.length) throw new Error("A webhook needs an event.");
      const id = batch.value.trim();
      made = await client.post(id ? `v1/batches/${encodeURIComponent(id)}/webhooks` : "v1/webhooks",
        { url: url.value.trim(), events });
    };
    await ask({ title: "New webhook", action: "Add the webhook", work,
      content: [field("Address", url, "What is to be told, by POST."),
        h("fieldset", h("legend", "Events"), boxes.map(([event, box]) =>
          h("div.check", box, h("label", { for: box.id }, event)))),
        field("One batch alone", batch, "Its id; left empty, all batches of the organisation are told of.")] });
    if (!made) return;
    await load();
    await showSecret({ title: "The new webhook", label: "Secret", secret: made.secret,
      hint: "Who is told checks the signature of each event with it." });
  }

  const remove = (hook) => async () => {
    const sure = await ask({ title: "Remove this webhook?", danger: true, action: "Remove", cancel: "Keep it",
      work: () => client.delete(`v1/webhooks/${encodeURIComponent(hook.id)}`),
      content: [h("p", data(hook.url)), h("p", "Its log goes with it, and what has not been delivered is not sent.")] });
    if (!sure) return;
    toast("The webhook is removed.");
    await load();
  };
  await every(15, { signal, tell }, load);
}

/** Show the log of one webhook. */
export async function webhookPage(place, { client, id, may, query, heading, signal, tell }) {
  const path = `v1/webhooks/${encodeURIComponent(id)}/deliveries`;
  const after = query.get("after");
  const list = h("div.awaited");
  const pages = h("div.pages");
  heading.replaceChildren("Webhook ", brief(id));
  place.append(h("p.quiet", h("a", { href: "#/webhooks" }, "All webhooks"), " · The log goes back thirty days."),
    h("section", h("h2", "What was sent"), list, pages));

  async function load() {
    const found = await client.get(path, { after, limit: PAGE }, signal);
    draw(list, found.data, (all) => table({ caption: "Deliveries, newest first", empty: "Nothing has been sent yet.",
      columns: ["State:name", "Event:name", "Batch", "Tries:number", "Last answer:wide", "Created", "Actions"],
      rows: all.map(row) }));
    turn(pages, found, after, (last) => `#/webhooks/${encodeURIComponent(id)}${last ? `?after=${last}` : ""}`);
  }

  function row(each) {
    const [kind, words] = STATES[each.status] ?? ["off", each.status];
    const [at, what] = each.status === "delivered" ? [each.delivered_at, "at"] : [each.next_at, "next try"];
    const answer = [each.last_status_code && h("span.tag", data(each.last_status_code)),
      each.last_error && data(each.last_error)];
    const then = at && h("div.quiet", `${what} `, time(at, { exact: true }));
    return [h("div", mark(kind, words), then), data(each.event), batchLink(each.batch_id), count(each.attempts),
      answer.some(Boolean) ? answer : null, time(each.created_at),
      may("write") && h("div.actions", button("Send again", replay(each), { kind: "small", key: `again-${each.id}` }))];
  }

  const replay = (each) => async () => {
    await client.post(`${path}/${encodeURIComponent(each.id)}/replay`);
    toast("It is sent once more, under the same id.");
    await load();
  };
  await every(3, { signal, tell }, load);
}
