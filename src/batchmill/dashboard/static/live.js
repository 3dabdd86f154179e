// Follows a batch: by the server's events, or by asking now and then where there are none.

import { FINAL } from "./format.js";
import { pause } from "./client.js";

const ASKED = 3; // seconds between questions
const TRIES = 3; // broken streams in a row, after which it is asked instead

/** Tell `seen` the progress of a batch, until it is final or the page is left, and `tell` of a server that is away. */
export async function follow({ client, id, signal, seen, tell = () => {} }) {
  const path = `v1/batches/${encodeURIComponent(id)}/progress`;
  for (let broken = 0; broken < TRIES;) {
    try {
      for await (const { event, data } of client.events(path, signal)) {
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
      broken += 1;
    }
    await pause(ASKED, signal);
  }
  await ask({ client, id, path, signal, seen, tell });
}

async function ask({ client, id, path, signal, seen, tell }) {
  for (let missing = false; ;) {
    try {
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
      if (fault.name !== "Fault" || (fault.status && fault.status < 500)) throw fault;
      tell(fault);
    }
    await pause(ASKED, signal);
  }
}

/** Return what an older server's Batch says of its progress. */
function ofBatch({ status, request_counts, expires_at, usage, progress }) {
  const { lines_per_second = null, eta = null, misses_by = null } = progress ?? {};
  return { status, request_counts, expires_at, usage, lines_per_second, eta, misses_by, backends: [],
    error_groups: [] };
}
