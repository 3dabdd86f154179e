// Asks the public API: the key goes into a header and nowhere else.

const BASE = document.baseURI.split("#")[0];
const AWAY = 3; // seconds until a server that is away is asked again
const HELD = 1 << 30; // bytes that a browser without such a way may hold
const PICKED = 32 << 20; // bytes from which a download is written to the disk as it comes, where the browser can

/** Something the server, or the way to it, refused. */
export class Fault extends Error {
  constructor(status, message, { code = null, param = null, wait = 0 } = {}) {
    super(message);
    Object.assign(this, { name: "Fault", status, code, param, wait });
  }

  /** Whether it may be over by itself in `wait` seconds or more: a server that is away or busy, or too many calls. */
  get passing() {
    return !this.missing && (this.status === 0 || this.status === 429 || this.status >= 500);
  }

  /** Whether the server does not have this route at all, rather than not this object. */
  get missing() {
    return this.code === "unknown_url" || this.status === 405 || this.status === 501;
  }
}

function faultOf(status, text, after = null) {
  const wait = Number(after) || 0;
  try {
    const { message, code, param } = JSON.parse(text).error;
    return new Fault(status, message, { code, param, wait });
  } catch {
    return new Fault(status, `The server answered ${status}.`, { wait });
  }
}

/** Return the body of an answer, all of which has to come. */
async function whole(response, kind = "json") {
  try {
    return await response[kind]();
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Fault(0, "The server's answer broke off.");
  }
}

/** Return a name for something that is to be done once, however often it is sent. */
export const once = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export class Client {
  #key;
  #refused;

  /** `refused` is called when the server does not take the key. */
  constructor({ key, refused }) {
    this.#key = key;
    this.#refused = refused;
  }

  url(path, query = {}) {
    const url = new URL(path, BASE);
    for (const [name, value] of Object.entries(query)) {
      for (const each of [value].flat()) if (each !== null && each !== undefined
        && each !== "") url.searchParams.append(name, each);
    }
    return url;
  }

  /** Return the response if it is a good one. */
  async ask(path, { method = "GET", query, body, accept, signal, key } = {}) {
    const headers = { Authorization: `Bearer ${this.#key}` };
    if (accept) headers.Accept = accept;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (key) headers["Idempotency-Key"] = key;
    let response;
    try {
      response = await fetch(this.url(path, query), { method, headers, signal, cache: "no-store",
        referrerPolicy: "no-referrer", credentials: "omit", redirect: "follow",
        body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (fault) {
      if (fault.name === "AbortError") throw fault;
      throw new Fault(0, "The server cannot be reached.");
    }
    if (response.ok) return response;
    const fault = faultOf(response.status, await response.text(), response.headers.get("retry-after"));
    if (fault.status === 401) this.#refused();
    throw fault;
  }

  async get(path, query, signal) {
    return whole(await this.ask(path, { query, signal }));
  }

  /** Post; with a `key` (see `once`) it is done once, if it has to be sent again. */
  async post(path, body = {}, signal = undefined, key = undefined) {
    return whole(await this.ask(path, { method: "POST", body, signal, key }));
  }

  async delete(path) {
    return whole(await this.ask(path, { method: "DELETE" }));
  }

  /** Return the lines of a JSONL answer, each as its very text and as a value (null where it is no JSON). */
  async lines(path, query, signal) {
    const response = await this.ask(path, { query, signal });
    const lines = (await whole(response, "text")).split("\n").filter(Boolean).map((text) => ({ text, value: parsed(text) }));
    return { lines, headers: response.headers };
  }

  /** Yield the server-sent events of a path, as {event, data}; the key stays in the header. */
  async *events(path, signal) {
    const response = await this.ask(path, { accept: "text/event-stream", signal });
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) throw new Fault(406, "no stream");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let held = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
        const event = { event: "message", data: "" };
        for (const line of held.slice(0, end).split("\n")) {
          const [, name, text] = /^(\w+): ?(.*)$/s.exec(line) ?? [];
          if (name === "event") event.event = text;
          if (name === "data") event.data += text;
        }
        if (event.data || event.event !== "message") yield event;
      }
    }
  }

  /** Upload an input file; `progress` is told the bytes sent. XHR, since fetch does not tell them. */
  upload(file, { progress, signal }) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", this.url("v1/files"));
      request.setRequestHeader("Authorization", `Bearer ${this.#key}`);
      request.upload.onprogress = (event) => progress(event.loaded, event.total);
      request.onerror = () => reject(new Fault(0, "The upload broke off: the server cannot be reached."));
      request.onabort = () => reject(new DOMException("The upload was aborted.", "AbortError"));
      request.onload = () => {
        if (request.status === 200) return resolve(JSON.parse(request.responseText));
        if (request.status === 401) this.#refused();
        return reject(faultOf(request.status, request.responseText, request.getResponseHeader("retry-after")));
      };
      signal.addEventListener("abort", () => request.abort());
      const form = new FormData();
      form.append("purpose", "batch");
      form.append("file", file, file.name);
      request.send(form);
    });
  }

  /**
   * Save a file: a large one goes to the disk as it comes, where the browser can; else all of it is held first. It goes
   * on when another page is shown.
   */
  async download({ id, filename, bytes }) {
    const path = `v1/files/${encodeURIComponent(id)}/content`;
    const query = { redirect: "false" }; // no page of ours asks another host
    if (bytes > PICKED && window.showSaveFilePicker) {
      const picked = await window.showSaveFilePicker({ suggestedName: filename.replaceAll(/[^\w.-]+/g, "_") });
      const response = await this.ask(path, { query });
      return response.body.pipeTo(await picked.createWritable());
    }
    if (bytes > HELD) throw new Fault(0,
      `The file is too large for this browser to hold: take it with another client, from ${path}.`);
    const url = URL.createObjectURL(await whole(await this.ask(path, { query }), "blob"));
    const link = Object.assign(document.createElement("a"), { href: url, download: filename });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    return undefined;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Wait, or end with the signal. */
export const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });

/** Do something now and every few seconds, while the page is seen; `tell` hears of a server that is away, or null. */
export async function every(seconds, { signal, tell }, work) {
  for (;;) {
    let wait = seconds;
    try {
      if (!document.hidden) await work();
      tell(null);
    } catch (fault) {
      if (!fault.passing) throw fault;
      tell(fault);
      wait = Math.max(fault.wait, Math.min(seconds, AWAY));
    }
    await pause(wait, signal);
  }
}
