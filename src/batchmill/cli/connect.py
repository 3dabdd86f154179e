"""How a command asks a server: which one, with which key, and what it says when that comes to nothing."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any

import typer

from batchmill.cli.exit import ClientExit, Stop
from batchmill.client.failure import Failed, Refused, Unreachable, wire
from batchmill.client.http import Client, Json, base_of, connect
from batchmill.client.text import shown

DEFAULT_SERVER = "http://127.0.0.1:8000"
_KEY = "BATCHMILL_API_KEY"
_ID = re.compile(r"[A-Za-z0-9][\w.:-]*", re.ASCII)
_VISIBLE = re.compile(r"[!-~]+")

ServerOption = Annotated[
    str,
    typer.Option(envvar="BATCHMILL_SERVER", help="Address of the server; the key comes from BATCHMILL_API_KEY."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else: one object, or one a line.")]
BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id, batch_….")]

Work = Callable[[Client], Coroutine[Any, Any, ClientExit]]


def talk(server: str, work: Work, *, as_json: bool = False) -> None:
    """Run `work` with a client of the server, and end the command with its exit code.

    With `as_json`, what it comes to nothing with is an object on stdout, beside the sentence on stderr.

    Raises:
        Stop: it came to nothing.
        typer.Exit: otherwise.
    """
    key = os.environ.get(_KEY) or None
    try:
        code = asyncio.run(_run(server, key, work))
    except Failed as failed:
        if as_json:
            say_json(wire(failed))
        raise Stop(_sentence(failed, key), _code(failed)) from failed
    except Stop as stop:
        if as_json:
            say_json(wire(Failed(str(stop))))
        raise
    except BrokenPipeError:  # whoever reads our answer has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = ClientExit.GOOD
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = ClientExit.INTERRUPTED
    except OSError as fault:
        raise Stop(f"{fault.filename or 'Standard output'}: {fault.strerror}.", ClientExit.USAGE) from fault
    raise typer.Exit(code)


def check_key(key: str | None) -> None:
    """Raise Stop for a key that no header may hold."""
    if key is not None and not _VISIBLE.fullmatch(key):
        raise Stop(
            f"{_KEY} holds what no key has in it: a space, a line break or a letter that is not ASCII.",
            ClientExit.USAGE,
        )


async def _run(server: str, key: str | None, work: Work) -> ClientExit:
    check_key(key)
    try:
        base_of(server)
    except ValueError as fault:
        raise Stop(f"--server: it {fault}.", ClientExit.USAGE) from fault
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio.run made it
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with connect(server, key=key, say=note) as client:
        return await work(client)


def _sentence(failed: Failed, key: str | None) -> str:
    if isinstance(failed, Unreachable) and "cannot be reached" in str(failed):
        return f"{failed} --server or BATCHMILL_SERVER names another."
    if isinstance(failed, Refused) and failed.status == 401:  # noqa: PLR2004 - HTTP's own
        return f"{failed} {_KEY}, which should hold the key, is {'not set' if key is None else 'not good here'}."
    return str(failed)


def _code(failed: Failed) -> ClientExit:
    return ClientExit.UNREACHABLE if isinstance(failed, Unreachable) else ClientExit.REFUSED


async def extra(client: Client, batch_id: str, action: str, body: Mapping[str, object] | None = None) -> Json:
    """Return what a route answers that only Batchmill has, of one batch.

    Raises:
        Refused: the server refuses it.
        Failed: it has no such route.
    """
    try:
        return await client.post(f"/batches/{batch_id}/{action}", body)
    except Refused as refused:
        if not refused.is_missing:
            raise
        await client.get(f"/batches/{batch_id}")  # else it is the batch that is not there
        raise Failed(f"This server has no `{action}` for batches: it is an extension of Batchmill's.") from refused


def read_id(what: str, text: str) -> str:
    """Return an id as it may stand in a path.

    Raises:
        Stop: it is none.
    """
    if not _ID.fullmatch(text):
        raise Stop(f"{what}: {text!r} is no id.", ClientExit.USAGE)
    return text


def note(sentence: str) -> None:
    """Tell the one who waits, on stderr."""
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201 - as said


def say_json(value: object) -> None:
    """Print JSON's values on one line of ASCII, which no terminal takes for anything else."""
    print(json.dumps(value), flush=True)  # noqa: T201 - the command's answer


def say_table(rows: list[dict[str, object]]) -> None:
    """Print rows, tab-separated under their names; each cell as a terminal may show it."""
    if rows:
        print("\t".join(rows[0]), flush=True)  # noqa: T201 - the command's answer
    for row in rows:
        print("\t".join(shown(cell) for cell in row.values()), flush=True)  # noqa: T201 - the same
