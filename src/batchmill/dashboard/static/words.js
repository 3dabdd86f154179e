// Finds the words in a request and in a result: what was asked, and what was answered, whatever the endpoint.

const list = (value) => (Array.isArray(value) ? value : []);

/** Return the text of a message's content, which is text or a list of parts; parts without text are named. */
function content(value) {
  if (typeof value === "string") return value;
  if (value === null || value === undefined) return "";
  return list(value).map((part) => part?.text ?? part?.refusal ?? `[${part?.type ?? "part"}]`).join("\n");
}

/** Return what a line of input asks, as pairs of a role and its words. */
export function asked(line) {
  const body = line?.body ?? {};
  if (Array.isArray(body.messages)) return body.messages.map((message) =>
    [message?.role ?? "", content(message?.content)]);
  const said = body.prompt ?? body.input;
  const before = typeof body.instructions === "string" ? [["instructions", body.instructions]] : [];
  if (typeof said === "string") return [...before, ["input", said]];
  return [...before, ...list(said).map((item) =>
    typeof item === "object" && item ? [item.role ?? item.type ?? "input", content(item.content ?? item.text)]
      : ["input", String(item)])];
}

/** Return whether a result line is a success. */
export const succeeded = (line) => !line?.error && line?.response?.status_code >= 200
  && line.response.status_code < 300;

/** Return what a result line answers, as pairs of a kind and its words; an error is one, too. */
export function answered(line) {
  const { error, response } = line ?? {};
  const body = response?.body;
  if (!succeeded(line)) {
    const told = body?.error ?? error ?? {};
    const message = typeof told === "string" ? told : told.message ?? body?.message ?? body?.detail ?? "No message.";
    const code = error?.code ?? told.code ?? null;
    return [[[response?.status_code, code].filter((x) => x !== null && x !== undefined).join(" ") || "error",
      text(message)]];
  }
  const said = [
    ...list(body?.choices).flatMap((choice) => [
      ["reasoning", content(choice?.message?.reasoning_content)],
      ["", content(choice?.message?.content ?? choice?.message?.refusal ?? choice?.text)],
      ...list(choice?.message?.tool_calls).map((call) =>
        ["tool call", `${call?.function?.name}(${call?.function?.arguments})`])]),
    ...list(body?.output).map((item) =>
      [item?.type ?? "output", content(item?.content ?? item?.summary ?? item?.arguments)]),
    ...list(body?.data).map((item) => ["embedding", `${list(item?.embedding).length} numbers`]),
    ...list(body?.results).map((item) => ["moderation", item?.flagged ? "flagged" : "not flagged"]),
  ].filter(([, words]) => words);
  return said.length ? said : [["", "(empty)"]];
}

const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
