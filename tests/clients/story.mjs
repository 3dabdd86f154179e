// What a stranger does with the official client for Node, from upload to results: `node story.mjs URL KEY`.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { setTimeout as pause } from "node:timers/promises";

const [, , url, key, home] = process.argv;
const require = createRequire(`${home}/package.json`);
const { default: OpenAI, toFile } = require("openai");
const { VERSION } = require("openai/version");

const line = (n) => ({
  custom_id: `行-${n}`,
  method: "POST",
  url: "/v1/chat/completions",
  body: { model: "echo", messages: [{ role: "user", content: `雨 ${n}` }] },
});
const lines = Array.from({ length: 20 }, (_, n) => JSON.stringify(line(n)) + "\n").join("");
const order = { endpoint: "/v1/chat/completions", completion_window: "24h", metadata: { 项目: "雨" } };
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 30_000 });

const collect = async (pages) => {
  const found = [];
  for await (const item of pages) found.push(item.id);
  return found;
};
const refused = async (status, call) => {
  await assert.rejects(call, (fault) => {
    assert.equal(fault.status, status);
    assert.equal(fault.requestID, fault.headers.get("msh-request-id"));
    return Boolean(fault.type);
  });
};

assert((await collect(client.models.list())).includes("echo"));
const source = await client.files.create({ file: await toFile(Buffer.from(lines), "输入.jsonl"), purpose: "batch" });
assert.equal(source.bytes, Buffer.byteLength(lines));
assert.equal(source.filename, "输入.jsonl");
assert.equal(await (await client.files.content(source.id)).text(), lines);
const made = await client.batches.create({ input_file_id: source.id, ...order });
let batch = made;
for (const end = Date.now() + 60_000; batch.status !== "completed"; await pause(50)) {
  assert(["validating", "in_progress", "finalizing"].includes(batch.status) && Date.now() < end, batch.status);
  batch = await client.batches.retrieve(made.id);
}
assert.deepEqual(batch.request_counts, { completed: 20, failed: 0, total: 20 });
const results = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n").map(JSON.parse);
assert.deepEqual(results.map((result) => result.custom_id), Array.from({ length: 20 }, (_, n) => `行-${n}`));
assert.equal((await collect(client.batches.list({ limit: 1 })))[0], batch.id);
assert.equal((await collect(client.files.list({ limit: 1 }))).length, 2);
await refused(400, () => client.batches.cancel(batch.id));
await refused(404, () => client.batches.retrieve("batch_none"));
await refused(401, () => new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-none", maxRetries: 0 }).files.list());
for (const id of await collect(client.files.list())) assert((await client.files.delete(id)).deleted);
await refused(404, () => client.files.retrieve(source.id));
console.log(`openai-node ${VERSION}: told to its end`);
