"""`batchmill results` and `batchmill fetch`: result lines as they come, and result files that are kept."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from batchmill.cli.connect import note, read_id, say_json
from batchmill.cli.exit import ClientExit, Stop
from batchmill.cli.output import appearing, written
from batchmill.client.download import fetch
from batchmill.client.http import Client, Json
from batchmill.client.patience import Patience
from batchmill.client.progress import is_final
from batchmill.client.results import Chosen, results
from batchmill.client.text import shown, shown_json


async def print_results(client: Client, batch_id: str, chosen: Chosen, *, output: Path | None) -> ClientExit:
    """Write result lines to a file, which appears when it is whole, or to stdout, as they come.

    A file that is followed grows where it stands. On a terminal, characters that cannot be seen are JSON's escapes.
    """
    if output is None and sys.stdout.isatty():
        async for line in results(client, batch_id, chosen, say=note):
            print(shown_json(line.rstrip(b"\n")), flush=True)  # noqa: T201 - the command's answer
        return ClientExit.GOOD
    with _target(output, grows=chosen.follow) as stream:
        async for line in results(client, batch_id, chosen, say=note):
            stream.write(line)
            if chosen.follow:
                stream.flush()
        stream.flush()
    return ClientExit.GOOD


async def keep_files(client: Client, batch_id: str, folder: Path, *, as_json: bool) -> ClientExit:
    """Keep a batch's result files as BATCH_output.jsonl and BATCH_error.jsonl in a folder, and say where they are."""
    batch = await client.get(f"/batches/{batch_id}")
    kept: dict[str, str | None] = {}
    for kind in ("output", "error"):
        file_id = batch.get(f"{kind}_file_id")
        kept[f"{kind}_file"] = None
        if file_id is None:
            continue
        path = _place(folder, f"{batch_id}_{kind}.jsonl")
        fresh = await _keep(client, read_id("The server's answer", str(file_id)), path)
        kept[f"{kind}_file"] = str(path)
        if not as_json:
            print(path, flush=True)  # noqa: T201 - the command's answer
            note(f"{path.name} {'is complete' if fresh else 'is there already'}.")
    if as_json:
        say_json({"batch_id": batch_id, "status": batch.get("status")} | kept)
    if not is_final(batch):
        note(f"The batch is {shown(batch.get('status'))} yet: its files come at its end.")
    elif not any(kept.values()):
        note("The batch has no result files.")
    return ClientExit.GOOD if any(kept.values()) else ClientExit.REFUSED


def _place(folder: Path, name: str) -> Path:
    with written(folder):
        if folder.exists() and not folder.is_dir():
            raise Stop(f"{folder} is a file: name a folder for the result files.", ClientExit.USAGE)
        folder.mkdir(parents=True, exist_ok=True)
    return folder / name


async def _keep(client: Client, file_id: str, path: Path) -> bool:
    facts: Json = await client.get(f"/files/{file_id}")
    size = facts.get("bytes") if isinstance(facts.get("bytes"), int) else None
    with written(path), _shown_download(path.name, size) as told:
        return await fetch(client, file_id, path, size=size, patience=Patience(client, say=note), told=told)


@contextmanager
def _target(output: Path | None, *, grows: bool) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
    else:
        with appearing(output, at_once=grows) as path, path.open("wb") as stream:
            yield stream


@contextmanager
def _shown_download(name: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how much of a file is there."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=size)
        yield lambda at: progress.update(task, completed=at)
