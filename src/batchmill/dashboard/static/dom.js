// Makes elements of names, attributes and text; nothing here or elsewhere reads text as HTML.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "path", "line", "rect", "text", "g", "circle", "polyline"]);
const OWN_LINKS = /^(#|blob:|docs$)/; // what data says is never a link

/** Return an element: `h("p.note", {id: "x", onclick: f}, "text", node)`; null, false and undefined are left out. */
export function h(name, ...rest) {
  const [tag, ...classes] = name.split(".");
  const node = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  const plain = rest.length && rest[0]?.constructor === Object;
  for (const [key, value] of Object.entries(plain ? rest.shift() : {})) set(node, key, value);
  append(node, rest);
  return node;
}

function set(node, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (key.startsWith("on")) {
    if (typeof value !== "function") throw new TypeError(`${key} takes a function`);
    node.addEventListener(key.slice(2), value);
  } else if (key === "style") {
    for (const [property, setting] of Object.entries(value)) node.style.setProperty(property, setting);
  } else if (key === "value" || key === "checked") {
    node[key] = value;
  } else {
    if (key === "href" && !OWN_LINKS.test(value)) throw new TypeError(`no link of ours: ${value}`);
    node.setAttribute(key, value === true ? "" : String(value));
  }
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
}

/** Return data as text that cannot turn the text around it: its direction is its own. */
export const data = (text) => h("bdi.data", text);

/** Return an id of ours, shortened for the eye: what it begins with is the time, what it ends with tells it apart. */
export const brief = (id) =>
  h("span", { title: id }, h("bdi.data", id.length > 28 ? `${id.slice(0, 16)}…${id.slice(-6)}` : id));

const drawn = new WeakMap();
const held = new WeakMap(); // what is to be drawn as soon as nothing in the place is being pressed

/** Draw a value into a place if it is another than before; focus stays on the element of the same `data-key`. */
export function draw(place, value, make) {
  if (place.matches(":active")) {
    if (!held.has(place)) setTimeout(() => drawHeld(place), 100);
    held.set(place, [value, make]);
    return;
  }
  held.delete(place);
  const text = `${new Date().toDateString()} ${JSON.stringify(value)}`; // a time of today is of yesterday tomorrow
  if (drawn.get(place) === text) return;
  drawn.set(place, text);
  const key = place.contains(document.activeElement) && document.activeElement.closest("[data-key]")?.dataset.key;
  place.replaceChildren();
  append(place, [make(value)]);
  if (key) [...place.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key)?.focus();
}

function drawHeld(place) {
  const late = held.get(place);
  held.delete(place);
  if (late) draw(place, ...late);
}

/** Return a table: `columns` are labels, or "label:kind"; on a narrow screen each row is a block. */
export function table({ caption, columns, rows, hidden = true, empty = "None." }) {
  if (!rows.length) return h("p.quiet", empty);
  const named = columns.map((column) => column.split(":"));
  const head = named.map(([label, kind]) => h("th", { scope: "col", role: "columnheader", class: kind }, label));
  const body = rows.map((cells) =>
    h("tr", { role: "row" }, cells.map((cell, i) => {
      const none = cell === null || cell === undefined || cell === false || cell.length === 0;
      const [label, kind] = named[i];
      const kinds = [kind, none && "none"].filter(Boolean).join(" ");
      return h("td", { role: "cell", class: kinds || null, "data-label": label }, h("div", none ? "–" : cell));
    })));
  return h("table", { role: "table" },
    h("caption", { class: hidden ? "unseen" : null }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, body));
}

/** Offer the newest entries of a list and older ones; `address` is that of the page behind an id, or of the first. */
export const turn = (place, found, after, address) => draw(place, [found.has_more, found.last_id, after], () => [
  after && h("a", { href: address() }, "Newest"),
  found.has_more && button("Older", () => { location.hash = address(found.last_id); })]);

/** Return a list of names and what they are; null leaves a pair out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== false);
  return h("dl.facts", shown.map(([name, value]) => h("div", h("dt", name), h("dd", value))));
}

/** Return a bar of what is done, with its words for those who do not see it. */
export function bar({ done, failed = 0, total, label }) {
  const share = (count) => `${total ? (100 * count) / total : 0}%`;
  return h("span.bar", { role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": total || 1,
    "aria-valuenow": Math.min(done + failed, total || 1),
      "aria-valuetext": `${done} done, ${failed} failed, of ${total}` },
  h("span.bar-done", { style: { "inline-size": share(done) } }),
  h("span.bar-failed", { style: { "inline-size": share(failed) } }));
}

/** Return a button; while its work runs it cannot be pressed again, and what goes wrong is told. */
export function button(label, work, { kind = "", key = label, ...more } = {}) {
  const node = h("button", { type: "button", class: kind, "data-key": key, ...more, onclick: async () => {
    node.setAttribute("aria-disabled", "true");
    try {
      await work(node);
    } catch (fault) {
      if (fault.name !== "AbortError") toast(fault.message, "bad");
    } finally {
      node.removeAttribute("aria-disabled");
    }
  } }, label);
  node.addEventListener("click", (event) => {
    if (node.getAttribute("aria-disabled") === "true") event.stopImmediatePropagation();
  }, { capture: true });
  return node;
}

/** Return a field with its label, and a hint below it. */
export function field(label, input, hint) {
  const id = input.id || `field-${(field.count = (field.count ?? 0) + 1)}`;
  input.id = id;
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  return h("div.field", h("label", { for: id }, label), input, hint && h("p.hint", { id: `${id}-hint` }, hint));
}

/** Return a select; `options` are values, or pairs of value and words. */
export function select(options, attributes = {}) {
  const { value, ...rest } = attributes;
  const node = h("select", rest, options.map((option) => {
    const [name, words] = Array.isArray(option) ? option : [option, option];
    return h("option", { value: name }, words);
  }));
  if (value !== undefined) node.value = value;
  return node;
}

/** Return a notice; a bad one is read out at once. */
export const notice = (kind, ...children) =>
  h(`div.notice.${kind}`, { role: kind === "bad" ? "alert" : null }, children);

/**
 * Ask in a dialog; `content` may hold fields. Resolve to true when the action was chosen and its `work` is done: what goes
 * wrong with that is told in the dialog, which stays. Without `cancel` nothing but the action closes it.
 */
export function ask({ title, content, action, danger = false, cancel = "Cancel", work = null }) {
  return new Promise((resolve) => {
    let chosen = false;
    const told = h("div");
    const act = h("button", { class: danger ? "danger" : "primary" }, action);
    const form = h("form.stack", { onsubmit: async (event) => {
      event.preventDefault();
      if (act.hasAttribute("aria-disabled")) return;
      act.setAttribute("aria-disabled", "true");
      told.replaceChildren();
      try {
        await work?.();
        chosen = true;
        dialog.close();
      } catch (fault) {
        if (fault.name !== "AbortError") told.replaceChildren(notice("bad", data(fault.message)));
      } finally {
        act.removeAttribute("aria-disabled");
      }
    } }, h("h2", { id: "asked" }, title), content, told,
    h("div.actions", cancel && h("button", { type: "button", onclick: () => dialog.close() }, cancel), act));
    const dialog = h("dialog", { "aria-labelledby": "asked", closedby: cancel ? null : "none",
      oncancel: (event) => cancel || event.preventDefault(),
      onclose: () => { dialog.remove(); resolve(chosen); } }, form);
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Say something in the corner, and to screen readers. */
export function toast(text, kind = "good") {
  const place = document.getElementById(kind === "bad" ? "alerts" : "toasts");
  const node = h(`p.toast.${kind}`, data(text));
  place.append(node);
  setTimeout(() => node.remove(), 8000);
}

/** Say something to screen readers alone; progress says it no oftener than every 15 seconds. */
export function announce(text, { dose = 0 } = {}) {
  const now = performance.now();
  if (dose && now - (announce.last ?? -Infinity) < dose * 1000) return;
  announce.last = now;
  document.getElementById("said").textContent = text;
}

/** Copy a text; where the page is not on https or localhost, the browser has the old way alone. */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const held = h("textarea", { value: text, class: "unseen", readonly: true, "aria-hidden": "true" });
  (document.querySelector("dialog[open]") ?? document.body).append(held); // beside a modal dialog nothing can be marked
  held.select();
  const copied = document.execCommand("copy");
  held.remove();
  if (!copied) throw new Error("The browser does not copy: mark the text and copy it yourself.");
  return undefined;
}

/** Return a button that copies a text and says so itself: beside a modal dialog nothing else would be heard. */
export const copier = (label, text) => button(label, async (node) => {
  await copy(text);
  node.textContent = "Copied";
  setTimeout(() => { node.textContent = label; }, 3000);
}, { kind: "small", "aria-live": "polite" });
