// Follows a batch: by the server's events, or by asking now and then where there are none.

import { FINAL } from "./format.js";
import { pause } from "./client.js";

const ASKED = 3; // seconds between questions
const TRIES = 3; // broken streams in a row, after which it is asked instead

/** Tell `seen` the progress of a batch, until it is final or the page is left, and `tell` of a server that is away. */
export async function follow({ client, id, signal, seen, tell = () => {} }) {
  const path = `v1/batches/${encodeURIComponent(id)}/progress`;
  for (let broken = 0; broken < TRIES;) {
    await visible(signal);
    const hidden = untilHidden(signal);
    let wait = ASKED;
    try {
      for await (const { event, data } of client.events(path, AbortSignal.any([signal, hidden.signal]))) {
        if (event === "end") return;
        if (event === "progress") {
          broken = 0;
          tell(null);
          const progress = JSON.parse(data);
          await seen(progress);
          if (FINAL.has(progress.status)) return;
        }
      }
      broken += 1;
    } catch (fault) {
      if (signal.aborted || fault.status === 401 || fault.status === 404 && !fault.missing) throw fault;
      if (fault.missing || fault.status === 406) break;
      if (hidden.signal.aborted) continue;
      if (fault.passing) tell(fault);
      wait = Math.max(wait, fault.wait ?? 0);
      broken += 1;
    } finally {
      hidden.abort();
    }
    await pause(wait, signal);
  }
  await ask({ client, id, path, signal, seen, tell });
}

/** Wait until the tab is seen. */
function visible(signal) {
  return new Promise((resolve, reject) => {
    if (!document.hidden) return resolve();
    document.addEventListener("visibilitychange", () => document.hidden || resolve(), { signal });
    return signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** Return what aborts when the tab is hidden: a browser has six connections for all its tabs, and a stream holds one. */
function untilHidden(signal) {
  const hidden = new AbortController();
  document.addEventListener("visibilitychange", () => document.hidden && hidden.abort(),
    { signal: AbortSignal.any([signal, hidden.signal]) });
  return hidden;
}

async function ask({ client, id, path, signal, seen, tell }) {
  for (let missing = false; ;) {
    let wait = ASKED;
    try {
      await visible(signal);
      const progress = missing ? ofBatch(await client.get(`v1/batches/${encodeURIComponent(id)}`, {}, signal))
        : await client.get(path, {}, signal);
      await seen(progress);
      tell(null);
      if (FINAL.has(progress.status)) return;
    } catch (fault) {
      if (signal.aborted || fault.status === 401) throw fault;
      if (fault.missing && !missing) {
        missing = true;
        continue;
      }
      if (!fault.passing) throw fault;
      tell(fault);
      wait = Math.max(wait, fault.wait);
    }
    await pause(wait, signal);
  }
}

/** Return what an older server's Batch says of its progress. */
function ofBatch({ status, request_counts, expires_at, usage, progress }) {
  const { lines_per_second = null, eta = null, misses_by = null } = progress ?? {};
  return { status, request_counts, expires_at, usage, lines_per_second, eta, misses_by, backends: [],
    error_groups: [] };
}
