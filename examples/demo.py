"""A stranger's client: runs demo.jsonl through a Batchmill of its own, on the built-in model.

It starts `batchmill serve` on a free port, uploads the file, creates a batch with the untouched `openai` client, shows
how it goes, prints what came back, and stops the server. All that it makes lies in demo-results/.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI, OpenAIError
from openai.types import Batch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

FINAL = ("completed", "failed", "expired", "cancelled")
START_SECONDS = 120
BATCH_SECONDS = 900  # far more than it takes: a demo must not hang
POLL_SECONDS = 0.25
BATCHMILL = [sys.executable, "-m", "batchmill"]
LOG = "server.log"
MADE = {"data", LOG, "output.jsonl", "error.jsonl"}  # what lies in the folder of results
# The demo shows the built-in model, whatever this shell is set up to serve.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}

console = Console()


class Failed(Exception):  # noqa: N818 - it says what happened
    """The demo did not work; the message says why."""


class Forecast(ProgressColumn):
    """Lines a second since the batch began, and what that means for the rest.

    Not rich's own estimate: lines end in bursts, and after the first of them it promised a quarter of the real time.
    """

    def render(self, task: Task) -> Text:
        """Return both, or dashes while nothing is known."""
        if not task.elapsed or not task.completed or task.total is None:
            return Text("-- lines/s ETA --", style="cyan")
        rate = task.completed / task.elapsed
        return Text(f"{rate:.1f} lines/s ETA {(task.total - task.completed) / rate:.0f} s", style="cyan")


@contextmanager
def server(folder: Path, backend: list[str]) -> Iterator[str]:
    """Serve on a free port until the block ends; yield the address."""
    log = folder / LOG
    options = [option for url in backend for option in ("--backend", url)]
    with log.open("w") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*BATCHMILL, "serve", "--data", str(folder / "data"), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=ENVIRONMENT,
        )
    try:
        yield wait_until_ready(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_until_ready(process: "subprocess.Popen[str]", log: Path) -> str:
    """Return the server's address once every part of it is ready."""
    first = process.stdout.readline() if process.stdout else ""
    if not first:
        process.wait()
        raise Failed(f"The server did not start:\n{log.read_text()}")
    url = first.split()[-1]
    reason = "it has not been asked"
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310 - our own server
                return url
        except urllib.error.HTTPError as not_ready:
            reason = not_ready.read().decode()
        except OSError as silent:  # it listens before it answers
            reason = str(silent)
        if process.poll() is not None:
            raise Failed(f"The server ended while it started:\n{log.read_text()}")
        time.sleep(POLL_SECONDS)
    raise Failed(f"The server is not ready after {START_SECONDS} s: {reason}")


def run_batch(client: OpenAI, path: Path) -> Batch:
    """Upload the file, create the batch, and watch it to its end."""
    uploaded = client.files.create(file=path, purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    console.print(f"[bold]{path}[/] is {uploaded.id}; the batch is {batch.id}", soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Forecast())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(batch.status, total=None)
        until = time.monotonic() + BATCH_SECONDS
        while batch.status not in FINAL:
            if time.monotonic() > until:
                raise Failed(f"The batch is {batch.status} after {BATCH_SECONDS} s; the server's log says why.")
            time.sleep(POLL_SECONDS)
            batch = client.batches.retrieve(batch.id)
            counts = batch.request_counts
            done = counts.completed + counts.failed if counts else 0
            progress.update(bar, description=batch.status, completed=done, total=(counts and counts.total) or None)
    return batch


def save_results(client: OpenAI, batch: Batch, folder: Path) -> list[Path]:
    """Download the result files."""
    saved = []
    for kind, file_id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
        if file_id is not None:
            path = folder / f"{kind}.jsonl"
            path.write_bytes(client.files.content(file_id).content)
            saved.append(path)
    return saved


def show(results: list[Path]) -> None:
    """Print a table of what came back."""
    table = Table("custom_id", "answer", "tokens", title="Results, in input order")
    for path in results:
        for line in path.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            body = (result["response"] or {}).get("body", {})
            choices = body.get("choices") or [{"message": {"content": json.dumps(result["error"] or body)}}]
            answer = " ".join((choices[0]["message"]["content"] or "").split())
            tokens = str(body.get("usage", {}).get("total_tokens", "-"))
            table.add_row(result["custom_id"], Text(answer if len(answer) < 90 else f"{answer[:89]}…"), tokens)  # noqa: PLR2004 - a terminal's width
    console.print(table)
    for path in results:
        console.print(f"Result file: {path}", soft_wrap=True)


def main() -> None:
    """Run the demo; exit 0 only if every line was answered."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=Path(os.path.relpath(here / "demo.jsonl")))
    parser.add_argument(
        "--backend", action="append", default=[], help="as of `batchmill serve`; else the built-in model"
    )
    parser.add_argument("--results", type=Path, default=Path("demo-results"))
    options = parser.parse_args()
    try:
        make_room(options.results)
        batch, results = demo(options.file, options.backend, options.results)
        show(results)
        require_all_answered(batch)
    except (Failed, OSError, OpenAIError) as failed:
        console.print(f"The demo did not work. {failed}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("Stopped.")
        sys.exit(130)  # as a shell says it of Ctrl-C


def make_room(folder: Path) -> None:
    """Make the folder of results, without those of the last run; a folder with anything else in it is left alone."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names and not (LOG in names and names <= MADE):
        strange = min(names - MADE, default="data")
        raise Failed(f"{folder} holds {strange}, which is not the demo's: name another folder with --results.")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / LOG).touch()  # marks the folder as the demo's from the start


def require_all_answered(batch: Batch) -> None:
    """Raise Failed, with the reasons, unless every line was answered."""
    reasons = [f"line {error.line}: {error.message}" for error in (batch.errors and batch.errors.data) or []]
    if batch.status != "completed":
        raise Failed("\n".join([f"The batch ended as {batch.status}.", *reasons]))
    if batch.error_file_id is not None:
        raise Failed("Some lines were answered with an error: see the error file.")


def demo(path: Path, backend: list[str], folder: Path) -> tuple[Batch, list[Path]]:
    """Make a key, serve, run the batch, stop; return the batch and its result files."""
    made = subprocess.run(  # noqa: S603 - our own command
        [*BATCHMILL, "keys", "create", "--data", str(folder / "data")],
        check=False,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    if made.returncode != 0:
        raise Failed(f"No key could be made: {made.stderr}")
    with server(folder, backend) as url:
        console.print(f"Batchmill serves on {url}")
        client = OpenAI(base_url=f"{url}/v1", api_key=made.stdout.strip())
        batch = run_batch(client, path)
        return batch, save_results(client, batch, folder)


if __name__ == "__main__":
    main()
