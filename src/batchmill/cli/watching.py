"""`batchmill watch`: a batch followed to its end, as a picture, as lines, or as JSON."""

import asyncio
import sys
import time
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live

from batchmill.cli.connect import note, say_json
from batchmill.cli.exit import BATCH_EXIT, ClientExit
from batchmill.client.failure import Failed
from batchmill.client.follow import follow
from batchmill.client.http import Client
from batchmill.client.progress import Progress, read_progress
from batchmill.client.watch import Log, Picture, describe, plain

_REFRESH = 4  # times a second


async def watch(client: Client, batch_id: str, *, as_json: bool, stream: TextIO = sys.stdout) -> ClientExit:
    """Show how a batch goes on `stream` until it is final; return what became of it."""
    try:
        if as_json:
            last = await _told(client, batch_id)
        elif stream.isatty() and not (console := Console(file=stream)).is_dumb_terminal:
            last = await _pictured(client, batch_id, console)
        else:
            last = await _logged(client, batch_id, stream)
    except asyncio.CancelledError:
        note(f"The batch goes on; to see it again: batchmill watch {batch_id}")
        raise
    if not as_json:
        _sum_up(last, stream)
    return exit_of(last)


def exit_of(progress: Progress) -> ClientExit:
    """Return the exit code that says what became of a batch."""
    code = BATCH_EXIT[progress.status]
    return ClientExit.LINES_FAILED if code is ClientExit.GOOD and progress.request_counts.failed else code


async def _told(client: Client, batch_id: str) -> Progress:
    last = None
    async for found in follow(client, batch_id, say=note):
        say_json(found)
        last = read_progress(found)
    return _ended(last)


async def _logged(client: Client, batch_id: str, stream: TextIO) -> Progress:
    last, log = None, Log()
    async for found in follow(client, batch_id, say=note):
        last = read_progress(found)
        line = log.line(last, time.time())
        if line is not None and not last.is_final:
            print(line, file=stream, flush=True)
    return _ended(last)


async def _pictured(client: Client, batch_id: str, console: Console) -> Progress:
    last: Progress | None = None
    picture = Picture()

    def draw() -> RenderableType:
        return "" if last is None else picture.draw(last, time.time())

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    with Live(
        console=console,
        get_renderable=draw,
        refresh_per_second=_REFRESH,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        async for found in follow(client, batch_id, say=say):
            last = read_progress(found)
            picture.seen(last)
    return _ended(last)


def _ended(last: Progress | None) -> Progress:
    if last is None or last.status not in BATCH_EXIT:
        raise Failed("The server tells nothing of how the batch ended.")
    return last


def _sum_up(progress: Progress, stream: TextIO) -> None:
    """Say how it ended, why lines failed, and what to do next."""
    lines, counts = [plain(progress, time.time())], progress.request_counts
    lines += [f"  {describe(group)}" for group in progress.error_groups]
    if counts.failed:
        lines.append(f"The failed lines: batchmill results {progress.batch_id} --status failed")
        lines.append(f"Run them again:   batchmill retry {progress.batch_id}")
    if progress.status == "failed":
        lines.append(f"What is wrong with the input: batchmill show {progress.batch_id}")
    elif counts.done:
        lines.append(f"Keep the results: batchmill fetch {progress.batch_id}")
    for line in lines:
        print(line, file=stream, flush=True)
