// Writes numbers as the words around them, in English, and times as the reader has them: in his zone, UTC at hand.

import { h } from "./dom.js";

const LANGUAGE = "en";
const COUNT = new Intl.NumberFormat(LANGUAGE);
const SHORT = new Intl.NumberFormat(LANGUAGE, { notation: "compact", maximumFractionDigits: 1 });
const RATE = new Intl.NumberFormat(LANGUAGE, { maximumSignificantDigits: 3 });
const PERCENT = new Intl.NumberFormat(LANGUAGE, { style: "percent", maximumFractionDigits: 1 });
const MINUTE = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const SECOND = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const FAR = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const NEAR = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

export const count = (value) => (value === null || value === undefined ? "–" : COUNT.format(value));
export const short = (value) => (value === null || value === undefined ? "–" : SHORT.format(value));
export const rate = (value) => (value === null || value === undefined ? "–" : RATE.format(value));
/** Return a part as a percentage; nothing but all of it is 100 %. */
export const share = (part, whole) =>
  (whole ? PERCENT.format(part < whole ? Math.min(part / whole, 0.999) : part / whole) : "–");
export const plural = (value, one, many = `${one}s`) => `${COUNT.format(value)} ${value === 1 ? one : many}`;

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; value >= 1024 && i < units.length - 1; i += 1) value /= 1024;
  return `${i ? RATE.format(value) : COUNT.format(value)} ${units[i]}`;
}

export function money(cost) {
  if (!cost) return null;
  const digits = Math.abs(cost.amount) >= 1 || cost.amount === 0 ? 2 : 6;
  try {
    return new Intl.NumberFormat(LANGUAGE,
      { style: "currency", currency: cost.currency, maximumFractionDigits: digits })
      .format(cost.amount);
  } catch {
    return `${cost.amount} ${cost.currency}`;
  }
}

export function duration(seconds) {
  const whole = Math.round(Math.abs(seconds));
  const [d, hrs, m, s] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60,
    whole % 60];
  if (d) return `${d} d ${hrs} h`;
  if (hrs) return `${hrs} h ${m} min`;
  if (m) return m < 10 && s ? `${m} min ${s} s` : `${m} min`;
  return `${s} s`;
}

/** Return a time in the reader's zone, `exact` to the second; UTC is its title, so that hovering shows it. */
export function time(unix, { exact = false } = {}) {
  if (unix === null || unix === undefined) return "–";
  const date = new Date(unix * 1000);
  const same = date.toDateString() === new Date().toDateString();
  const utc = date.toISOString().replace("T", " ").replace(".000Z", " UTC");
  return h("time", { datetime: date.toISOString(), title: utc },
    (same ? (exact ? SECOND : MINUTE) : Math.abs(unix - now()) < 180 * 86400 ? NEAR : FAR).format(date));
}

export const now = () => Date.now() / 1000;

/** Return the name of the zone that times are shown in, and how far it is from UTC now. */
export function zone() {
  const { timeZone } = new Intl.DateTimeFormat().resolvedOptions();
  const offset = new Intl.DateTimeFormat("en", { timeZoneName: "shortOffset" }).formatToParts(new Date())
    .find(({ type }) => type === "timeZoneName").value.replace("GMT", "UTC").replace(/[+]0$/, "");
  return timeZone === offset ? offset : `${timeZone}, ${offset}`;
}

/** Return how many errors an input has: a list of them may end with an entry that counts the rest. */
export function wrongs({ data: found }) {
  const last = found.at(-1);
  return last?.code === "more_errors" ? found.length - 1 + parseInt(last.message, 10) : found.length;
}

const STATES = {
  validating: ["Validating", "busy"],
  in_progress: ["In progress", "busy"],
  finalizing: ["Finalizing", "busy"],
  completed: ["Completed", "good"],
  failed: ["Failed", "bad"],
  expired: ["Expired", "bad"],
  cancelling: ["Cancelling", "warn"],
  cancelled: ["Cancelled", "off"],
};
export const STATUSES = Object.entries(STATES).map(([status, [words]]) => [status, words]);
export const FINAL = new Set(["completed", "failed", "expired", "cancelled"]);

/** Return a batch's state as a mark with words. */
export function state(batch) {
  const [words, kind] = STATES[batch.status] ?? [batch.status, "off"];
  return batch.paused_at && !FINAL.has(batch.status)
    ? h("span.mark.warn", "Paused")
    : h(`span.mark.${kind}`, words);
}

export const mark = (kind, words) => h(`span.mark.${kind}`, words);

/** Return how a batch stands to its deadline, in words: an ETA, or a miss. */
export function forecast({ eta, expires_at, misses_by }) {
  const miss = misses_by > 0 || (eta && eta > expires_at);
  if (miss) return h("span", mark("bad", "At risk"),
    ` misses the deadline by ${duration(misses_by || eta - expires_at)}`);
  if (eta) return h("span", "done ", time(eta), h("span.quiet", ` (${duration(expires_at - eta)} to spare)`));
  return h("span.quiet", "not known yet");
}
