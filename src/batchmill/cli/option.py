"""The options that commands share, the settings that they make, and how a command speaks."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from batchmill.cli.exit import Exit, Stop
from batchmill.settings import BadSettings, Settings, load_settings

DataOption = Annotated[str | None, typer.Option(help="Folder that holds everything. [default: ./batchmill-data]")]
FileOption = Annotated[Path | None, typer.Option(help="Settings file (TOML); the environment and flags win over it.")]

BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Inference server: URL or URL#model-a,model-b. Repeatable. Without one, the built-in model on the CPU."
    ),
]
KeyOption = Annotated[
    list[str] | None,
    typer.Option(help="Environment variable that holds a backend's API key; one for each --backend, - for none."),
]
TimeoutOption = Annotated[
    list[str] | None,
    typer.Option(help="Time for one request, such as 30m: for all backends, or for each. [default: 30m]"),
]
UnknownOption = Annotated[
    str | None, typer.Option(help="retry or fail a line that may have run when its answer was lost. [default: retry]")
]
LimitsOption = Annotated[str | None, typer.Option(help="kimi or open. [default: kimi]")]
TransportOption = Annotated[
    str | None, typer.Option(help="own or aiohttp: what carries requests to backends. [default: own]")
]
WindowOption = Annotated[int | None, typer.Option(help="Requests in flight at a backend. [default: it is found]")]
PoliteOption = Annotated[bool | None, typer.Option("--polite", help="Leave more of the backends to other users.")]
DrainOption = Annotated[str | None, typer.Option(help="How long open requests may end on a stop. [default: 30s]")]
LeaseOption = Annotated[str | None, typer.Option(help="How long a silent process is waited for. [default: 15s]")]
EndpointOption = Annotated[str | None, typer.Option(help="What each line's url must be. [default: the first line's]")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's id, key_…; `keys list` shows it.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The organisation's name.")]
FilesOption = Annotated[str | None, typer.Option(help="Files that it may keep.")]
BytesOption = Annotated[str | None, typer.Option(help="Bytes that its files may have together.")]
ModelsOption = Annotated[str | None, typer.Option(help="Models that it may use, with commas between.")]
RateOption = Annotated[str | None, typer.Option(help="Calls of the API that it may make in a minute.")]
WeightOption = Annotated[str | None, typer.Option(help="Its share beside other organisations; 1 is the usual one.")]
DayOption = Annotated[
    str | None, typer.Option("--tokens-per-day", help="Tokens after which it creates no more batches that day (UTC).")
]
QueueOption = Annotated[
    str | None, typer.Option("--enqueued-tokens", help="Tokens of each model that its running batches may have to do.")
]
CostOption = Annotated[
    str | None, typer.Option("--batch-cost", help="What a batch may cost, by estimate, in the currency of the prices.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ListOption = Annotated[bool, typer.Option("--json", help="Print a JSON list.")]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        help="PostgreSQL's URL; with a password in it, better BATCHMILL_DATABASE. [default: SQLite under --data]"
    ),
]
BlobsOption = Annotated[
    str | None, typer.Option(help="Bucket URL: s3://, gs:// or az://bucket/prefix. [default: files under --data]")
]
ModelOption = Annotated[Path | None, typer.Option(help="GGUF file for the built-in engine.")]
LogOption = Annotated[str | None, typer.Option(help="text or json. [default: text]")]


def settings_of(flags: dict[str, Any]) -> Settings:
    """Return the settings with these flags; one that is None was not given.

    Raises:
        Stop: some make no sense.
    """
    try:
        return load_settings({name: value for name, value in flags.items() if value is not None})
    except BadSettings as fault:
        raise Stop(str(fault), Exit.USAGE) from fault


def say(line: str) -> None:
    """Print a line of a command's answer."""
    print(line, flush=True)  # noqa: T201 - the command's answer


def say_rows(rows: list[dict[str, object]], *, as_json: bool) -> None:
    """Print rows for people, under the names of their columns, or as JSON, where times are Unix seconds."""
    if as_json:
        say(json.dumps(rows))
    elif rows:
        say("\t".join(rows[0]))
        for row in rows:
            say(_shown(row))


def _shown(row: dict[str, object]) -> str:
    """Return a row as a line for people."""
    return "\t".join(_cell(name, value) for name, value in row.items())


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and name.endswith("_at"):
        return datetime.fromtimestamp(value, UTC).isoformat()
    return ",".join(value) if isinstance(value, (list, tuple)) else str(value)
