// One batch: how far it is and will be, what went wrong, and the ways to steer it.

import { FINAL, count, duration, forecast, money, now, plural, rate, share, short, state, time, wrongs } from "../format.js";
import { announce, ask, bar, brief, button, copier, data, draw, facts, field, h, notice, table, toast } from "../dom.js";
import { thin, timeline } from "../chart.js";
import { follow } from "../live.js";
import { linesBrowser } from "./lines.js";
import { pairs } from "./batches.js";

const STAMPS = [["created_at", "Created, validating"], ["in_progress_at", "In progress"],
  ["finalizing_at", "Finalizing"],
  ["cancelling_at", "Cancelling"], ["completed_at", "Completed"], ["failed_at", "Failed"], ["expired_at", "Expired"],
    ["cancelled_at", "Cancelled"]];
const samples = new Map(); // of each batch that was looked at: kept while the tab is open
const SOON = 5; // seconds after which a batch that runs was not watched from its beginning

export async function batchPage(place, { client, id, may, heading, signal, tell }) {
  const path = `v1/batches/${encodeURIComponent(id)}`;
  const parts = Object.fromEntries(["top", "numbers", "problems", "backends", "steps", "about",
    "family"].map((name) => [name, h("div")]));
  const charts = h("div.charts");
  const lines = linesBrowser({ client, id, signal });
  const done = timeline({ title: "Lines done", unit: "so far", words: short });
  const speed = timeline({ title: "Speed", unit: "tokens/s", words: rate });
  let batch = await client.get(path, {}, signal);
  let progress = null;
  let looked = null; // how many lines were done when the page of them was last loaded

  heading.replaceChildren("Batch ", brief(id));
  heading.after(copier("Copy id", id));
  place.append(parts.top, parts.numbers, charts, parts.problems,
    h("div.halves", h("section", h("h2", "Timeline"), parts.steps), h("section", h("h2", "Backends"), parts.backends)),
    h("section", h("h2", "About this batch"), parts.about), parts.family, lines.node);

  const again = async () => { batch = await client.get(path, {}, signal); show(); };
  const post = (what, body) => async () => {
    await client.post(`${path}/${what}`, body);
    await again();
  };

  function show() {
    const { completed, failed, total } = batch.request_counts;
    draw(parts.top, [batch.status, batch.expires_at, batch.paused_at, completed, failed, total, progress?.waiting,
      batch.output_file_id, batch.error_file_id],
      () => top({ batch, progress, may, post, client, again, signal }));
    draw(parts.numbers, [progress, batch.usage, batch.cost], () => numbers(batch, progress));
    draw(parts.problems, [batch.errors, progress?.error_groups, batch.status], () => problems());
    draw(parts.backends, progress?.backends ?? [], (found) => table({ caption: "Lines by backend",
      columns: ["Backend", "Lines:number", "Share:number", "Prompt tokens:number", "Answer tokens:number"],
      rows: found.map((each) =>
        [data(each.backend), count(each.lines), share(each.lines, found.reduce((sum, other) => sum + other.lines, 0)),
        short(each.prompt_tokens), short(each.completion_tokens)]), empty: "No backend has answered a line." }));
    draw(parts.steps, STAMPS.map(([name]) => batch[name]), () => steps(batch));
    draw(parts.about, [batch.metadata, batch.priority, batch.expires_at, batch.status, batch.model],
      () => about(batch));
  }

  function problems() {
    const found = progress?.error_groups ?? [];
    const final = FINAL.has(batch.status);
    const retry = (body) => async () => {
      const child = await client.post(`${path}/retry`, body);
      toast("The failed lines are in a new batch.");
      location.hash = `#/batches/${encodeURIComponent(child.id)}`;
    };
    const seen = (group) =>
      async () => { await lines.show(`group:${group.id}`); document.getElementById("lines").focus(); };
    return [
      batch.errors && h("section", h("h2", `Why it failed: ${plural(wrongs(batch.errors), "error")}`),
        errorsTable(batch.errors.data)),
      found.length > 0 && h("section", h("div.split", h("h2", "Failed lines by cause"),
        final && may("write") && button("Retry all failed lines", retry({}), { key: "retry-all" })),
      table({ caption: "Failed lines by cause, the most first",
        columns: ["Lines:number", "Cause:wide", "Lines such as:name", "Actions"],
        rows: found.map((group) => [count(group.count),
          h("div", group.status && h("span.tag", data(group.status)), group.code && h("span.tag", data(group.code)),
            data(group.message), group.example && group.example !== group.message
              && h("p.quiet", "Such as: ", data(group.example))),
          group.custom_ids.slice(0, 3).map((each) => h("div", data(each))),
          h("div.actions", button("Show lines", seen(group), { key: `show-${group.id}`, kind: "small" }),
            final && may("write")
              && button("Retry", retry({ error_group: group.id }), { key: `retry-${group.id}`, kind: "small" }))]) }),
      progress.errors_ungrouped > 0
        && h("p.quiet", `${plural(progress.errors_ungrouped, "more failure")} of other causes.`),
      !final && h("p.quiet", "They can be retried when the batch is final.")),
    ];
  }

  function sample() {
    const { request_counts: counts, prompt_tokens_per_second: prompt, completion_tokens_per_second: answer } = progress;
    const tokens = (prompt ?? answer ?? null) === null ? null : (prompt ?? 0) + (answer ?? 0);
    const kept = samples.get(id) ?? { watched: now(),
      points: batch.in_progress_at ? [[batch.in_progress_at, 0, null]] : [] };
    const points = thin([...kept.points, [now(), counts.completed + counts.failed, tokens]]);
    samples.set(id, { ...kept, points });
    if (points.length < 2) return;
    if (!done.node.isConnected) charts.append(done.node);
    const unseen = batch.in_progress_at > 0 && kept.watched - batch.in_progress_at > SOON;
    const since = ["Since this page was first opened, at ", time(kept.watched, { exact: true })];
    done.show(points.map(([at, lineCount]) => [at, lineCount]), { most: counts.total || 1, unseen,
      words: unseen ? [...since, "; how it went before is not kept (dashed)."] : [] });
    const known = points.filter(([, , each]) => each !== null).map(([at, , each]) => [at, each]);
    if (known.length < 2) return;
    if (!speed.node.isConnected) charts.append(speed.node);
    speed.show(known, { words: unseen ? [...since, "."] : [] });
  }

  const seen = async (next) => {
    const moved = next.status !== batch.status // or steered, by someone else too
      || ["paused_at", "priority", "expires_at"].some((name) => next[name] !== undefined && next[name] !== batch[name]);
    const first = progress === null;
    progress = next;
    batch = { ...batch, request_counts: next.request_counts, expires_at: next.expires_at ?? batch.expires_at };
    if (moved || first) batch = await client.get(path, {}, signal);
    lines.node.hidden = batch.status === "failed";
    lines.groups(next.error_groups);
    if (next.request_counts.total && (!FINAL.has(next.status) || !first)) sample();
    show();
    const { completed, failed, total } = next.request_counts;
    if (looked !== completed + failed || moved) await lines.look();
    looked = completed + failed;
    if (total) announce(`${count(completed + failed)} of ${plural(total, "line")} done, ${count(failed)} failed.`,
      { dose: moved ? 0 : 15 });
  };
  lines.node.hidden = batch.status === "failed"; // none was sent
  show();
  await Promise.all([lines.show(""), family(parts.family, { client, batch, signal }),
    follow({ client, id, signal, seen, tell })]);
}

function top({ batch, progress, may, post, client, again, signal }) {
  const { completed, failed, total } = batch.request_counts;
  const final = FINAL.has(batch.status);
  const waiting = progress?.waiting;
  return h("section.card", { "aria-label": "State" },
    h("div.split", h("div", state(batch), " ", total > 0 && h("strong", share(completed + failed, total))),
      h("div.actions", may("write") && !final && steer({ batch, post, client, again }),
        downloads({ batch, client, signal }))),
    total > 0 ? [bar({ done: completed, failed, total, label: "Progress" }),
      h("p", `${count(completed + failed)} of ${plural(total, "line")} done`, failed > 0
        && h("span.bad-text", `, ${count(failed)} failed`))]
      : h("p.quiet", final ? "No line was sent." : "Its lines are being checked; none has been sent."),
    waiting && !batch.paused_at && notice("warn", "It waits: ", data(waiting.reason),
      h("span.quiet", " (since ", time(waiting.since), ")")),
    batch.paused_at && !final && notice("warn", "Paused since ", time(batch.paused_at),
      ". The window keeps running, until ", time(batch.expires_at), "."));
}

/** Return a table of what is wrong with an input, line by line; a long one scrolls in its place. */
export const errorsTable = (errors) =>
  h("div.long", { tabindex: 0, role: "region", "aria-label": "Errors of the input" }, table({ caption: "Errors of the input",
    columns: ["Line:number", "Code", "Message:wide", "Where"],
    rows: errors.map((each) => [count(each.line), data(each.code), data(each.message), each.param && data(each.param)]) }));

/** Return the buttons that change how a batch goes on. */
function steer({ batch, post, client, again }) {
  const path = `v1/batches/${encodeURIComponent(batch.id)}`;
  const running = ["validating", "in_progress"].includes(batch.status);
  const change = async (what, title, input, hint, read) => {
    const work = () => client.post(`${path}/${what}`, read(input.value));
    if (await ask({ title, content: field(title, input, hint), action: "Change", work })) await again();
  };
  return [
    running && (batch.paused_at ? button("Resume", post("resume"), { key: "resume", kind: "primary" })
      : button("Pause", post("pause"), { key: "pause" })),
    running && button("Window…",
      () => change("window", "Completion window", h("input", { value: batch.completion_window, autocomplete: "off" }),
      "Such as 24h or 3d, counted from when the batch was created.", (value) => ({ completion_window: value.trim() }))),
    running && button("Priority…",
      () => change("priority", "Priority",
      h("input", { type: "number", min: -100, max: 100, value: String(batch.priority ?? 0) }),
      "From -100 to 100. Batches of your organisation with a higher one go first.",
        (value) => ({ priority: Number(value) }))),
    batch.status !== "cancelling" && button("Cancel…", async () => {
      await ask({ title: "Cancel this batch?", danger: true, action: "Cancel the batch",
        cancel: "Keep it running", work: post("cancel"),
        content: h("p", "Lines that are done stay done. All others end as failed, and it cannot be taken back.") });
    }, { kind: "danger", key: "cancel" }),
  ];
}

function downloads({ batch, client, signal }) {
  return [["Output", batch.output_file_id], ["Errors", batch.error_file_id]].filter(([, id]) => id).map(([words, id]) =>
    button(`Download ${words.toLowerCase()}`, async () => {
      await client.download(await client.get(`v1/files/${encodeURIComponent(id)}`, {}, signal));
    }, { key: `download-${words}` }));
}

function numbers(batch, progress) {
  const usage = progress?.usage ?? batch.usage;
  const final = FINAL.has(batch.status);
  const tile = (name, value, more) => value !== null && value !== undefined
    && h("div", h("dt", name), h("dd", value, more && h("span.quiet", more)));
  const tiles = [
    !final && progress && tile("Forecast", forecast(progress)),
    tile("Deadline", final ? null : time(batch.expires_at)),
    !final && tile("Speed", progress?.lines_per_second ? `${rate(progress.lines_per_second)} lines/s` : null),
    !final && tile("Queue", progress?.queue_position
      ? `${plural(progress.queue_position, "batch", "batches")} before it` : progress?.queue_position === 0
      ? "worked on" : null),
    tile("Prompt tokens", usage && batch.request_counts.total ? short(usage.input_tokens) : null, usage?.input_tokens_details.cached_tokens
      ? ` ${short(usage.input_tokens_details.cached_tokens)} cached` : null),
    tile("Answer tokens", usage && batch.request_counts.total ? short(usage.output_tokens) : null, usage?.output_tokens_details.reasoning_tokens
      ? ` ${short(usage.output_tokens_details.reasoning_tokens)} reasoning` : null),
    tile("Cost", money(progress?.cost ?? batch.cost)),
    tile("Lines sent again", progress?.retries ? count(progress.retries) : null)].filter(Boolean);
  return tiles.length > 0 && h("dl.tiles", tiles);
}

function steps(batch) {
  const passed = STAMPS.map(([name, words]) => [batch[name], words]).filter(([at]) => at).sort(([a], [b]) => a - b);
  return h("ol.steps", passed.map(([at, words], i) => h("li", h("strong", words), " ", time(at, { exact: true }),
    i > 0 && h("span.quiet", ` after ${duration(at - passed[i - 1][0])}`))));
}

function about(batch) {
  const file = (id) => id && h("bdi.data", id);
  return facts([
    ["Batch", data(batch.id)], ["Endpoint", data(batch.endpoint)], ["Model", batch.model && data(batch.model)],
    ["Completion window", h("span", data(batch.completion_window), " until ", time(batch.expires_at))],
      ["Priority", batch.priority ? count(batch.priority) : null],
    ["Input file", file(batch.input_file_id)], ["Output file", file(batch.output_file_id)],
      ["Error file", file(batch.error_file_id)],
    ["Metadata", batch.metadata && Object.keys(batch.metadata).length ? pairs(batch.metadata) : null],
  ]);
}

/** Tell of which batch this one is a retry, and which are retries of it. */
async function family(place, { client, batch, signal }) {
  const link = (id) => h("a.id", { href: `#/batches/${encodeURIComponent(id)}` }, brief(id));
  const parent = batch.parent_id && h("p", "This batch retries failed lines of ", link(batch.parent_id), ".");
  if (parent) place.append(h("section", h("h2", "Retries"), parent));
  let found;
  try {
    found = await client.get("v1/batches", { parent_id: batch.id, limit: 100 }, signal);
  } catch (fault) {
    if (!fault.passing) throw fault;
    return place.append(notice("bad", "Its retries cannot be shown: ", data(fault.message)));
  }
  const children = found.data.filter((each) => each.parent_id === batch.id); // an older server tells of all batches
  if (!children.length) return undefined;
  const rows = children.map((each) => [state(each), link(each.id), ended(each.request_counts), time(each.created_at)]);
  return place.replaceChildren(h("section", h("h2", "Retries"), parent,
    table({ caption: "Retries of this batch, newest first", columns: ["State", "Batch:name", "Lines:wide", "Created"], rows }),
    found.has_more && h("p.quiet", "There are older ones, too.")));
}

const ended = ({ completed, failed, total }) => [`${count(completed + failed)} of ${plural(total, "line")} done`,
  failed > 0 && h("span.bad-text", `, ${count(failed)} failed`)];
