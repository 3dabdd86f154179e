"""Makes the pictures of the dashboard in docs/images: a server of its own, batches before a stand-in engine, a browser.

python tools/screenshots.py [--out DIR]: needs Chromium and the packages of the tests (`make screenshots`).
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from openai import OpenAI
from playwright.sync_api import Page, sync_playwright

BATCHMILL = [sys.executable, "-m", "batchmill"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}
START_SECONDS = 60
WATCHED_SECONDS = 25  # so long the running batch is looked at: its chart grows meanwhile
SIZE = {"width": 1280, "height": 860}
SETTINGS = """
limits = "open"
window = 12
[models."qwen3-8b"]
price = { input = 0.05, output = 0.20 }
[models."qwen3-32b"]
price = { input = 0.20, output = 0.80 }
"""
REVIEWS = (
    ("The battery lasts two days and the screen is bright.", "positive"),
    ("It arrived broken, and nobody answers my letters.", "negative"),
    ("电池续航很好，屏幕也不错。", "positive"),
    ("客服态度很差，等了三周才收到。", "negative"),
    ("A solid phone for the price, though the camera is slow.", "positive"),
)


class Engine(BaseHTTPRequestHandler):
    """Stands in for an inference server: it answers as fast as a small one would, and refuses some prompts."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Tell the models."""
        self._answer(200, {"object": "list", "data": [{"id": "qwen3-8b"}, {"id": "qwen3-32b"}]})

    def do_POST(self) -> None:
        """Answer a review with its sentiment."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        time.sleep(random.uniform(0.25, 0.6))  # noqa: S311 - no secret
        if len(prompt) > 2_000:  # noqa: PLR2004 - an engine's context
            message = (
                f"This model's maximum context length is 32768 tokens. However, you requested {40_000 + len(prompt)}."
            )
            self._answer(400, {"error": {"message": message, "code": "context_length_exceeded"}})
            return
        if "refund" in prompt:
            self._answer(
                400, {"error": {"message": "The prompt was refused by the content filter.", "code": "content_filter"}}
            )
            return
        answer = next((word for review, word in REVIEWS if review in prompt), "neutral")
        usage = {"prompt_tokens": 60 + len(prompt) // 4, "completion_tokens": 24, "total_tokens": 84 + len(prompt) // 4}
        message = {
            "role": "assistant",
            "content": json.dumps({"sentiment": answer, "language": "zh" if prompt[-1] == "。" else "en"}),
        }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer(
            200,
            {
                "id": "c",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            },
        )

    def _answer(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def lines(count: int, *, model: str = "qwen3-8b", long: int = 0, refused: int = 0) -> bytes:
    """Return that many lines of input; every so many of them are too long, or refused."""

    def prompt(number: int) -> str:
        if long and number % long == 2:  # noqa: PLR2004 - one of each group
            return "Review: " + "very " * 500 + "good."
        if refused and number % refused == 3:  # noqa: PLR2004 - another one
            return "Review: I want a refund, now!"
        return f"Review: {REVIEWS[number % len(REVIEWS)][0]}"

    system = {"role": "system", "content": "Give the sentiment of the review, and its language, as JSON."}
    return b"".join(
        json.dumps(
            {
                "custom_id": f"review-{number:05}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": model, "messages": [system, {"role": "user", "content": prompt(number)}]},
            },
            ensure_ascii=False,
        ).encode()
        + b"\n"
        for number in range(count)
    )


@contextmanager
def server(folder: Path, backends: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Serve on a free port; yield the address and a key that may all."""
    data, out = folder / "data", folder / "out"
    (folder / "batchmill.toml").write_text(SETTINGS)
    options = [word for url in backends for word in ("--backend", url)]
    with out.open("wb") as output, (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*BATCHMILL, "serve", "--data", data, "--port", "0", "--settings", folder / "batchmill.toml", *options],
            stdout=output,
            stderr=log,
            env=ENVIRONMENT,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not (found := re.search(r"listens on (\S+)", out.read_text())):
            if time.monotonic() > end:
                raise SystemExit(f"The server does not start: {(folder / 'log').read_text()}")
            time.sleep(0.1)
        scopes = [word for scope in ("read", "write", "admin") for word in ("--scope", scope)]
        made = [*BATCHMILL, "keys", "create", "--data", data, "--name", "operations", *scopes]
        key = subprocess.run(made, check=True, capture_output=True, text=True, env=ENVIRONMENT)  # noqa: S603 - as above
        yield found[1], key.stdout.strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def create(client: OpenAI, content: bytes, filename: str, **metadata: str) -> str:
    """Create a batch and return its id."""
    file = client.files.create(file=(filename, content), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    )
    return made.id


def fill(client: OpenAI) -> tuple[str, str]:
    """Make batches in several states; return the one that runs, and one that is done with failures."""
    done = create(client, lines(240, long=24, refused=40), "reviews.jsonl", team="search", dataset="reviews-2026-11")
    create(client, lines(2) + b"{'custom_id': 3}\n" + lines(1), "draft.jsonl", team="search")
    create(client, lines(60, model="qwen3-32b"), "golden.jsonl", team="评测组", dataset="golden set")
    for _ in range(600):
        if client.batches.retrieve(done).status == "completed":
            break
        time.sleep(0.1)
    create(client, lines(9_000, model="qwen3-32b"), "archive.jsonl", team="ranking", dataset="archive")
    running = create(client, lines(4_000, long=90, refused=150), "nightly.jsonl", team="ranking", dataset="nightly")
    return running, done


def shoot(page: Page, url: str, *, key: str, running: str, done: str, folder: Path, out: Path) -> None:
    """Visit the pages and take the pictures."""

    def take(name: str) -> None:
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=out / f"{name}.png")

    page.goto(url)
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    page.get_by_role("navigation", name="Pages").wait_for()
    page.goto(f"{url}/#/batches/{running}")
    time.sleep(WATCHED_SECONDS)
    take("batch")
    page.emulate_media(color_scheme="dark")
    take("batch-dark")
    page.emulate_media(color_scheme="light")
    page.goto(f"{url}/#/batches")
    page.get_by_text("dataset: nightly").wait_for()
    take("batches")
    page.goto(f"{url}/#/batches/{done}")
    page.get_by_role("article").first.wait_for()
    page.get_by_label("Show").select_option("failed")
    time.sleep(1)
    page.get_by_role("heading", name="Lines", exact=True).evaluate("(node) => node.scrollIntoView()")
    take("lines")
    (folder / "labels.jsonl").write_bytes(lines(1_200))
    page.goto(f"{url}/#/new")
    page.locator("input[type=file]").set_input_files(folder / "labels.jsonl")
    page.get_by_text("Input: ").wait_for()
    page.get_by_role("button", name="Get a quote").click()
    page.get_by_role("heading", name="1,200 lines").wait_for()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    take("quote")


def main() -> None:
    """Make all of them."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    out: Path = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    engines = [ThreadingHTTPServer(("127.0.0.1", 0), Engine) for _ in range(2)]
    for engine in engines:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with server(folder, [f"http://127.0.0.1:{engine.server_port}/v1" for engine in engines]) as (url, key):
            running, done = fill(OpenAI(base_url=f"{url}/v1", api_key=key))
            page = browser.new_context(viewport=SIZE, color_scheme="light", locale="en-GB").new_page()
            shoot(page, url, key=key, running=running, done=done, folder=folder, out=out)
        browser.close()


if __name__ == "__main__":
    main()
