// Shows a secret, this once.

import { ask, copier, field, h, notice } from "../dom.js";

/** Show a secret that the server does not show again, until it is said to be kept. */
export async function showSecret({ title, label, secret, hint }) {
  const shown = h("input", { value: secret, readonly: true, class: "mono", onfocus: () => shown.select() });
  await ask({ title, action: "I have kept it", cancel: null,
    content: [notice("warn", "It is shown only now."), field(label, shown, hint),
      h("div.actions", copier("Copy", secret))] });
  shown.value = "";
}
