"""The command `batchmill backends`, and its options: what is said to running workers."""

import json
from typing import Annotated

import typer

from batchmill.cli.option import (
    DatabaseOption,
    DataOption,
    FileOption,
    JsonOption,
    ListOption,
    say,
    say_rows,
    settings_of,
)
from batchmill.settings import Settings

backends_app = typer.Typer(no_args_is_help=True, help="Backends that come and go while the workers run.")

BackendArgument = Annotated[str, typer.Argument(metavar="BACKEND", help="Its URL, or its name in `backends list`.")]


@backends_app.command("add")
def backends_add(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL or URL#model-a,model-b.")],
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable with its API key, which every worker must have.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Requests in flight, of all workers together. [default: it is found]")
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Time for one request. [default: 30m]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Let every worker send to a backend, within a second or two, until it is removed."""
    from batchmill.cli import backends  # noqa: PLC0415 - half a second of imports that `--help` does not need

    name = backends.add(_rows(data, database, settings), url=url, key_env=key_env, window=window, timeout=timeout)
    say(json.dumps({"name": name, "added": True}) if as_json else f"{name} is added.")


@backends_app.command("drain")
def backends_drain(
    name: BackendArgument,
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let no worker send to a backend any more, also one of the settings; what is open there ends in its time."""
    from batchmill.cli import backends  # noqa: PLC0415 - as above

    backends.drain(_rows(data, database, settings), name=name, draining=True)
    say(json.dumps({"name": name, "draining": True}) if as_json else f"{name} gets no more requests.")


@backends_app.command("resume")
def backends_resume(
    name: BackendArgument,
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the workers send to a backend again that was drained."""
    from batchmill.cli import backends  # noqa: PLC0415 - as above

    backends.drain(_rows(data, database, settings), name=name, draining=False)
    say(json.dumps({"name": name, "draining": False}) if as_json else f"{name} gets requests again.")


@backends_app.command("remove")
def backends_remove(
    name: BackendArgument,
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what was said of a backend: one that was added goes, once nothing is open there."""
    from batchmill.cli import backends  # noqa: PLC0415 - as above

    backends.remove(_rows(data, database, settings), name=name)
    say(json.dumps({"name": name, "removed": True}) if as_json else f"Nothing is said of {name} any more.")


@backends_app.command("list")
def backends_list(
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    as_json: ListOption = False,
) -> None:
    """List the backends: how each is, how many workers send there, and their common window."""
    from batchmill.cli import backends  # noqa: PLC0415 - as above

    say_rows(list(backends.show(_rows(data, database, settings))), as_json=as_json)


def _rows(data: str | None, database: str | None, settings: object) -> Settings:
    return settings_of({"data": data, "database": database, "settings": settings})
