"""`batchmill submit` and `batchmill quote`: an input checked, uploaded, and made a batch or its price."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from batchmill.cli.check import Checked, check_lines, describe
from batchmill.cli.connect import note, read_id, say_json
from batchmill.cli.exit import ClientExit, Stop
from batchmill.cli.watching import watch
from batchmill.client.failure import Failed, Refused
from batchmill.client.http import Client, Json
from batchmill.client.text import shown
from batchmill.spec.limits import PROFILES, Limits
from batchmill.spec.lines import likely_endpoint, read_lines
from batchmill.spec.models import Catalogue
from batchmill.spec.objects import LineError

_FILE_ID = re.compile(r"file[-_][\w-]+", re.ASCII)
_SHOWN = 20  # bad lines
_USUAL = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be submitted: an input File's id, or a file that becomes one, and how."""

    source: str
    window: str
    endpoint: str | None
    metadata: dict[str, str] | None
    checked: bool  # first, on this machine

    @property
    def path(self) -> Path | None:
        """The file on this machine, None if the source is the id of one that is uploaded.

        Raises:
            Stop: it is neither.
        """
        path = Path(self.source)
        with _read(self.source):
            if path.is_file():
                return path
            if path.is_dir():
                raise Stop(f"{shown(self.source)} is a folder: name a file in it.", ClientExit.USAGE)
        if _FILE_ID.fullmatch(self.source):
            return None
        raise Stop(f"There is no file {shown(self.source)}.", ClientExit.USAGE)


def read_metadata(pairs: Sequence[str]) -> dict[str, str] | None:
    """Return what `--metadata` says; None if it was not given.

    Raises:
        Stop: one is not of the form KEY=VALUE.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise Stop(f"--metadata: {pair!r} is not of the form KEY=VALUE.", ClientExit.USAGE)
        found[name] = value
    return found or None


def check_first(order: Order, *, as_json: bool) -> None:
    """Check the input on this machine, by the rules that hold everywhere; the server's own limits may be narrower.

    Raises:
        Stop: it holds bad lines, which are listed on stderr.
    """
    path = order.path
    if path is None or not order.checked:
        return
    limits, checked, first = PROFILES["open"], Checked(), list[LineError]()
    with _read(order.source), path.open("rb", buffering=1 << 20) as stream:
        errors = check_lines(
            stream.readline, checked, limits=limits, endpoint=order.endpoint, models=None, catalogue=Catalogue(())
        )
        for error in errors:
            if len(first) < _SHOWN:
                first.append(error)
    if not checked.errors:
        return
    if as_json:
        wrong = [error.wire() for error in first]
        error_object = {"status": None, "message": checked.sentence(), "code": "invalid_input", "param": None}
        say_json({"error": error_object | {"errors": wrong}})
    for error in first:
        note(shown(describe(error)))
    if checked.errors > len(first):
        note(f"… `batchmill check {shown(order.source)} --limits open` lists all of them.")
    raise Stop(f"{checked.sentence()} Nothing was sent; --no-check leaves it to the server.", ClientExit.REFUSED)


async def submit(client: Client, order: Order, *, as_json: bool, watched: bool) -> ClientExit:
    """Make a batch of it, print its id, and watch it if that is asked for."""
    file_id, endpoint = await _uploaded(client, order)
    body: Json = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": order.window}
    batch = await client.post("/batches", body | ({} if order.metadata is None else {"metadata": order.metadata}))
    batch_id = str(batch.get("id"))
    if as_json:
        say_json(batch)
    else:
        print(shown(batch_id), flush=True)  # noqa: T201 - the command's answer
    if not watched:
        return ClientExit.GOOD
    return await watch(client, read_id("The server's answer", batch_id), as_json=as_json, stream=sys.stderr)


async def quote(client: Client, order: Order, *, trial: int) -> Json:
    """Return what a batch of it would cost and how long it would take; a file stays uploaded, to be submitted.

    Raises:
        Failed: the server has no such route.
    """
    file_id, endpoint = await _uploaded(client, order)
    body: Json = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": order.window}
    try:
        return await client.post("/batches/quote", body | ({"trial": trial} if trial else {}))
    except Refused as refused:
        if refused.is_missing:
            raise Failed("This server gives no quotes: they are an extension of Batchmill's.") from refused
        raise


async def _uploaded(client: Client, order: Order) -> tuple[str, str]:
    """Return the id of the File and the endpoint of its lines."""
    path = order.path
    if path is None:
        return order.source, order.endpoint or _USUAL
    with _read(order.source):
        endpoint = order.endpoint or _endpoint_of(path, PROFILES["open"])
        with _shown_upload(path) as told:
            uploaded = await client.upload(path, purpose="batch", told=told)
    return str(uploaded.get("id")), endpoint


def _endpoint_of(path: Path, limits: Limits) -> str:
    with path.open("rb") as stream:
        first = next(read_lines(stream.readline, limits.max_line_bytes), None)
    return _USUAL if first is None else likely_endpoint(first.text, limits)


@contextmanager
def _read(source: str) -> Iterator[None]:
    """Say that a file cannot be read, and why.

    Raises:
        Stop: as said.
    """
    try:
        yield
    except OSError as fault:
        raise Stop(f"{shown(source)} cannot be read: {fault.strerror or fault}.", ClientExit.USAGE) from fault


@contextmanager
def _shown_upload(path: Path) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how much of a file is gone."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = TextColumn("upload"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("upload", total=path.stat().st_size)
        yield lambda read: progress.update(task, completed=read)
