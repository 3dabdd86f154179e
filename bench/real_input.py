"""Real questions through a real server and the built-in model: wall time, rates, and peak memory of each process.

    python bench/real_input.py --questions gsm8k-test.jsonl:200 --questions cmath-dev.jsonl:100

Each line of a questions file is a JSON object with a `question` (GSM8K) or an `input` (CMATH). The server is started
by this script on a fresh data directory, and the `openai` client is the client. On a shared machine the figures are of
that run only.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from openai import OpenAI
from openai.types import Batch

_FINAL = ("completed", "failed", "expired", "cancelled")
_SYSTEM = "Solve the problem. Answer with the final number. 请用数字回答。"


def _lines(spec: str, model: str, max_tokens: int) -> Iterator[dict[str, object]]:
    name, _, count = spec.rpartition(":")
    for number, text in enumerate(Path(name).read_text(encoding="utf-8").splitlines()[: int(count)]):
        asked = json.loads(text)
        question = asked["question"] if "question" in asked else asked["input"]
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        custom_id = f"{Path(name).stem}-{number}"
        yield {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def _run(client: OpenAI, content: bytes) -> Batch:
    uploaded = client.files.create(file=("questions.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status not in _FINAL:
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        print(f"\r{batch.status} {counts and counts.completed}/{counts and counts.total}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return batch


def _peaks(session: int) -> Iterator[tuple[str, float]]:
    """Yield each process of the server with its peak resident memory, in MiB."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) != session:
                continue
            status = (folder / "status").read_text()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue  # it has ended
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        if peak:
            yield command.strip(), int(peak[1]) / 1024


def main() -> None:
    """Start a server, run the questions, print the figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--questions", action="append", required=True, metavar="FILE:COUNT")
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--max-tokens", type=int, default=64)
    chosen = options.parse_args()
    lines = [line for spec in chosen.questions for line in _lines(spec, chosen.model, chosen.max_tokens)]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    with tempfile.TemporaryDirectory() as folder:
        batchmill = [sys.executable, "-m", "batchmill"]
        made = subprocess.run(
            [*batchmill, "keys", "create", "--data", folder, "--json"], check=True, capture_output=True
        )
        server = subprocess.Popen(
            [*batchmill, "serve", "--data", folder, "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            if server.stdout is None:
                raise RuntimeError("no standard output")
            url = server.stdout.readline().split()[-1]
            client = OpenAI(base_url=f"{url}/v1", api_key=json.loads(made.stdout)["key"])
            started = time.monotonic()
            batch = _run(client, content)
            seconds = time.monotonic() - started
            _report(client, batch, lines, seconds)
            for command, peak in _peaks(server.pid):
                print(f"{peak:8.1f} MiB peak  {command}")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def _report(client: OpenAI, batch: Batch, lines: list[dict[str, object]], seconds: float) -> None:
    if batch.output_file_id is None or batch.usage is None:
        raise SystemExit(f"the batch ended as {batch.status} without an output: {batch.errors}")
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    in_order = [result["custom_id"] for result in results] == [line["custom_id"] for line in lines]
    usage = batch.usage
    print(f"{batch.status}: {len(results)} of {len(lines)} lines answered, in input order: {in_order}")
    print(f"{seconds:.1f} s wall, {len(results) / seconds:.2f} requests/s")
    print(f"{usage.input_tokens / seconds:.0f} prompt and {usage.output_tokens / seconds:.1f} answer tokens/s")
    cached = usage.input_tokens_details.cached_tokens
    print(f"{usage.input_tokens} prompt tokens ({cached} cached), {usage.output_tokens} answer tokens")


if __name__ == "__main__":
    main()
