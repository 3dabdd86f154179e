// A new batch: upload the input or choose one, see what is wrong with it and what it would cost, and create it.

import { Fault, once } from "../client.js";
import { announce, ask, button, data, draw, facts, field, h, notice, select, table } from "../dom.js";
import { bytes, count, duration, mark, money, plural, rate, share, short, time, wrongs } from "../format.js";
import { errorsTable } from "./batch.js";
import { follow } from "../live.js";
import { linesBrowser } from "./lines.js";

const ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations"];
const ERRORS = 200; // of the report are shown

export async function newPage(place, { client, me, may, query, signal }) {
  if (!may("write")) return place.append(notice("info",
    "A new batch is for keys with the scope write, which this key lacks."));
  const chosen = { file: null };
  const said = h("div.stack");
  let quoting = new AbortController(); // a quote is of what was ordered when it was asked for
  const unsay = () => { quoting.abort(new DOMException("Another is ordered.", "AbortError")); said.replaceChildren(); };
  const input = inputPart({ client, signal, choose: (file) => { chosen.file = file; unsay(); } });
  const endpoint = select(me.limits?.endpoints ?? ENDPOINTS, { onchange: unsay });
  const window = h("input", { value: "24h", autocomplete: "off", spellcheck: "false", size: 8, oninput: unsay });
  const metadata = metadataPart();
  const trial = h("input", { type: "number", min: 0, max: 100, value: "0", oninput: unsay });
  let sent = {}; // the last order, under which key: what nobody knows the end of is sent again as the same one
  const order = () => {
    if (!chosen.file) throw new Error("Upload or choose an input file first.");
    return { input_file_id: chosen.file.id, endpoint: endpoint.value, completion_window: window.value.trim(),
      ...metadata.read() };
  };
  const quoted = async () => {
    const body = { ...order(), trial: Number(trial.value) };
    unsay();
    quoting = new AbortController();
    const still = AbortSignal.any([signal, quoting.signal]);
    announce("The input is being checked.");
    said.replaceChildren(h("p.quiet", { role: "status" }, "Every line is being checked…"));
    try {
      const quote = await client.post("v1/batches/quote", body, still);
      said.replaceChildren(report(quote));
      said.querySelector("h2").focus();
      if (quote.trial) await tried({ client, quote, signal: still, place: said });
    } catch (fault) {
      if (fault.name === "AbortError") return;
      said.replaceChildren();
      if (!fault.missing) throw fault;
      said.replaceChildren(notice("info",
        "This server gives no quotes: the batch checks its lines once it is created."));
    }
  };
  const created = async () => {
    const body = order();
    const text = JSON.stringify(body);
    if (sent.text !== text) sent = { text, key: once() };
    let batch;
    try {
      batch = await client.post("v1/batches", body, signal, sent.key);
    } catch (fault) {
      if (fault instanceof Fault && fault.status) sent = {}; // it was answered
      throw fault;
    }
    location.hash = `#/batches/${encodeURIComponent(batch.id)}`;
  };
  place.append(
    h("section.card", h("h2", "1. Input"), input.node),
    h("section.card", h("h2", "2. Order"),
      h("div.tools", field("Endpoint", endpoint), field("Completion window", window, "Such as 24h or 3d."),
      field("Lines to try", trial, "0 to 100 lines that the quote really runs.")), metadata.node),
    h("section.card", h("h2", "3. Quote and create"),
      h("div.actions", button("Get a quote", quoted), button("Create batch", created, { kind: "primary" })), said));
  const id = query.get("file");
  if (id) input.take(await client.get(`v1/files/${encodeURIComponent(id)}`, {}, signal));
  return undefined;
}

/** Return the part that takes a file: dropped, chosen, or one that is there. */
function inputPart({ client, signal, choose }) {
  const state = h("div", { role: "status" });
  const picked = h("input",
    { type: "file", accept: ".jsonl", class: "unseen", onchange: () => picked.files[0] && upload(picked.files[0]) });
  picked.id = "picked";
  const over = (on) => (event) => { event.preventDefault(); drop.classList.toggle("over", on); };
  const drop = h("div.drop", { ondragover: over(true), ondragleave: over(false), ondrop: (event) => {
    over(false)(event);
    if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  } }, picked, h("label.button", { for: "picked" }, "Choose a JSONL file"), h("span.quiet", " or drop it here"));
  const node = h("div.stack", drop, h("div.actions", button("Use a file that is there…", existing, { kind: "small" })),
    state);

  function take(file) {
    choose(file);
    state.replaceChildren(notice("good", "Input: ", h("strong", data(file.filename)), ` (${bytes(file.bytes)}) `,
      h("bdi.data.quiet", file.id)));
  }

  let stop = new AbortController();

  async function upload(file) {
    stop.abort(); // one that is on its way: the last one counts
    const mine = stop = new AbortController();
    signal.addEventListener("abort", () => mine.abort());
    choose(null);
    const meter = h("progress", { max: 1, value: 0, "aria-label": `Upload of ${file.name}` });
    const words = h("span.quiet");
    state.replaceChildren(h("div.upload", h("span", "Uploading ", data(file.name)), meter, words,
      h("button", { type: "button", class: "small", onclick: () => mine.abort() }, "Abort")));
    const progress = (sent, total) => {
      meter.value = total ? sent / total : 0;
      words.textContent = `${bytes(sent)} of ${bytes(total)} (${share(sent, total)})`;
    };
    try {
      take(await client.upload(file, { progress, signal: mine.signal }));
      announce("The upload is done.");
    } catch (fault) {
      if (mine === stop) state.replaceChildren(notice(fault.name === "AbortError" ? "info" : "bad", data(fault.message)));
    }
    picked.value = "";
  }

  async function existing() {
    const { data: files } = await client.get("v1/files", { purpose: "batch", limit: 50 }, signal);
    if (!files.length) throw new Error("There are no input files yet.");
    const choice = select(files.map((file) => [file.id, `${file.filename.slice(0, 60)} · ${bytes(file.bytes)}`]));
    const sure = await ask({ title: "Input files", content: field("File", choice, "The newest 50."),
      action: "Use it" });
    if (!sure) return;
    stop.abort();
    take(files.find((file) => file.id === choice.value));
  }
  return { node, take };
}

/** Return the part that takes metadata, pair by pair. */
function metadataPart() {
  const rows = h("div.stack");
  let made = 0;
  const add = () => {
    made += 1;
    const name = h("input", { "aria-label": `Name ${made}`, maxlength: 64, placeholder: "name", autocomplete: "off" });
    const value = h("input",
      { "aria-label": `Value ${made}`, maxlength: 512, placeholder: "value", autocomplete: "off" });
    const row = h("div.pair", name, value,
      h("button", { type: "button", class: "small", "aria-label": `Remove pair ${made}`, onclick: () => row.remove() },
      "Remove"));
    rows.append(row);
    name.focus();
  };
  const node = h("fieldset", h("legend", "Metadata"), rows,
    h("button", { type: "button", class: "small", onclick: add }, "Add a pair"));
  const read = () => {
    const pairs = [...rows.children].map((row) =>
      [...row.querySelectorAll("input")].map((input) => input.value)).filter(([name]) => name);
    return pairs.length ? { metadata: Object.fromEntries(pairs) } : {};
  };
  return { node, read };
}

function report(quote) {
  const { forecast, models } = quote;
  const wrong = quote.errors?.data ?? [];
  const eta = forecast?.eta;
  const unbounded = models.reduce((all, each) => all + (each.unbounded ?? 0), 0);
  const bound = unbounded ? "as far as known" : "at most";
  return h("div.stack",
    h("h2", { tabindex: -1 }, quote.valid ? mark("good", "Valid") : mark("bad", "Not valid"),
    ` ${plural(quote.requests, "line")}, ${bytes(quote.bytes)}`),
    wrong.length > 0 && notice("bad", quote.valid ? "" : "A batch of this input would fail. ",
      `${plural(wrongs(quote.errors), "error")}:`),
    wrong.length > 0 && errorsTable(wrong.slice(0, ERRORS)),
    wrong.length > ERRORS && h("p.quiet", `${count(wrong.length - ERRORS)} more are not shown.`),
    models.length > 0 && table({ caption: "What it would take, by model", hidden: false,
      columns: ["Model", "Lines:number", "Prompt tokens:number", `Answer tokens, ${bound}:number`,
        `Cost, ${bound}:number`],
      rows: models.map((each) =>
        [data(each.model), count(each.requests), short(each.prompt_tokens),
        each.unbounded === each.requests ? "not known" : short(each.completion_tokens),
        money(each.cost) ?? "no price"]) }),
    unbounded > 0 && h("p.quiet",
      `${plural(unbounded, "line")} without max_tokens: nobody knows how long the answers will be, and they count as none.`),
    facts([[`Cost, ${bound}`, money(quote.cost)],
      ["Speed now", forecast?.tokens_per_second ? `${rate(forecast.tokens_per_second)} tokens/s` : null],
      ["Batches before it", forecast ? count(forecast.queue_position) : null],
        ["Deadline", forecast && time(forecast.expires_at)],
      ["Forecast", forecast
        && (eta ? h("span", "done ", time(eta), forecast.margin < 0
        ? h("span", " ", mark("bad", "At risk"), ` misses by ${duration(forecast.margin)}`)
        : h("span.quiet", ` (${duration(forecast.margin)} to spare)`))
          : h("span.quiet", "not known: nothing runs that it could be told by"))]]));
}

/** Show the answers of the lines that were tried, and when they are there. */
async function tried({ client, quote, signal, place }) {
  const lines = linesBrowser({ client, id: quote.trial.id, signal, title: "Trial", retried: false });
  const words = h("div", { role: "status" });
  place.append(words, lines.node);
  await follow({ client, id: quote.trial.id, signal, seen: async (progress) => {
    const { completed, failed, total } = progress.request_counts;
    draw(words, [completed, failed, total],
      () => `${count(completed + failed)} of ${plural(total, "line")} tried, ${count(failed)} failed.`);
    await lines.look();
  } });
}
