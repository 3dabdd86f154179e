"""The commands of the operator, `batchmill keys`, `orgs` and `backends`, and their options."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from batchmill.cli.option import (
    BytesOption,
    CostOption,
    DatabaseOption,
    DataOption,
    DayOption,
    FileOption,
    FilesOption,
    IdArgument,
    JsonOption,
    ListOption,
    ModelsOption,
    NameArgument,
    QueueOption,
    RateOption,
    WeightOption,
    say,
    say_rows,
    settings_of,
)
from batchmill.settings import Settings

keys_app = typer.Typer(no_args_is_help=True, help="API keys: who may ask, for what, until when.")
orgs_app = typer.Typer(no_args_is_help=True, help="Organisations, and what each may use.")
backends_app = typer.Typer(no_args_is_help=True, help="Backends that come and go while the workers run.")

BackendArgument = Annotated[str, typer.Argument(metavar="BACKEND", help="Its URL, or its name in `backends list`.")]


@keys_app.command("create")
def keys_create(
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    org: Annotated[str, typer.Option(help="Organisation the key is for; made if it is new.")] = "default",
    name: Annotated[str | None, typer.Option(help="What the key is for, in your words.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin. Repeatable. [default: read and write]")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="How long it is good, such as 90d. [default: for ever]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print {id, key, org} as JSON.")] = False,
) -> None:
    """Make an API key and print it, this once."""
    from batchmill.cli.keys import create_key  # noqa: PLC0415 - half a second of imports that `--help` does not need

    chosen = _chosen(data, database, settings)
    made = create_key(chosen, org=org, name=name, scopes=scope or (), expires_in=expires_in)
    say(json.dumps(asdict(made)) if as_json else made.key)


@keys_app.command("list")
def keys_list(
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    as_json: ListOption = False,
) -> None:
    """List all keys, by id, hint and what they may; never the keys themselves."""
    from batchmill.cli.keys import show_keys  # noqa: PLC0415 - as above

    say_rows(show_keys(_chosen(data, database, settings)), as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(
    key_id: IdArgument,
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a key be good for nothing from the next request on."""
    from batchmill.cli.keys import end_key  # noqa: PLC0415 - as above

    end_key(_chosen(data, database, settings), key_id=key_id)
    say(json.dumps({"id": key_id, "revoked": True}) if as_json else f"{key_id} is revoked.")


@keys_app.command("rotate")
def keys_rotate(
    key_id: IdArgument,
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    overlap: Annotated[str, typer.Option(help="How long the old key stays good; 0 ends it at once.")] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="Print {id, key, org} as JSON.")] = False,
) -> None:
    """Make a key like another, print it, this once, and let the old one expire."""
    from batchmill.cli.keys import rotate_key  # noqa: PLC0415 - as above

    made = rotate_key(_chosen(data, database, settings), key_id=key_id, overlap=overlap)
    say(json.dumps(asdict(made)) if as_json else made.key)


@orgs_app.command("create")
def orgs_create(
    name: NameArgument,
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    max_files: FilesOption = None,
    max_bytes: BytesOption = None,
    models: ModelsOption = None,
    requests_per_minute: RateOption = None,
    weight: WeightOption = None,
    tokens_per_day: DayOption = None,
    enqueued_tokens: QueueOption = None,
    batch_cost: CostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an organisation."""
    from batchmill.cli.orgs import create_org  # noqa: PLC0415 - as above

    limits = {"max_files": max_files, "max_bytes": max_bytes, "models": models}
    limits |= {"requests_per_minute": requests_per_minute, "weight": weight, "tokens_per_day": tokens_per_day}
    limits |= {"enqueued_tokens": enqueued_tokens, "batch_cost": batch_cost}
    made = create_org(_chosen(data, database, settings), name=name, limits=limits)
    _say(made, as_json=as_json)


@orgs_app.command("list")
def orgs_list(
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    as_json: ListOption = False,
) -> None:
    """List all organisations and what each may use; - is what the server allows everyone."""
    from batchmill.cli.orgs import show_orgs  # noqa: PLC0415 - as above

    say_rows(show_orgs(_chosen(data, database, settings)), as_json=as_json)


@orgs_app.command("set")
def orgs_set(
    name: NameArgument,
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    max_files: FilesOption = None,
    max_bytes: BytesOption = None,
    models: ModelsOption = None,
    requests_per_minute: RateOption = None,
    weight: WeightOption = None,
    tokens_per_day: DayOption = None,
    enqueued_tokens: QueueOption = None,
    batch_cost: CostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what an organisation may use, from the next request on; the word none removes a limit."""
    from batchmill.cli.orgs import set_org  # noqa: PLC0415 - as above

    limits = {"max_files": max_files, "max_bytes": max_bytes, "models": models}
    limits |= {"requests_per_minute": requests_per_minute, "weight": weight, "tokens_per_day": tokens_per_day}
    limits |= {"enqueued_tokens": enqueued_tokens, "batch_cost": batch_cost}
    changed = set_org(_chosen(data, database, settings), name=name, limits=limits)
    _say(changed, as_json=as_json)


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
    from batchmill.cli import backends  # noqa: PLC0415 - as above

    name = backends.add(_chosen(data, database, settings), url=url, key_env=key_env, window=window, timeout=timeout)
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

    backends.drain(_chosen(data, database, settings), name=name, draining=True)
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

    backends.drain(_chosen(data, database, settings), name=name, draining=False)
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

    backends.remove(_chosen(data, database, settings), name=name)
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

    say_rows(list(backends.show(_chosen(data, database, settings))), as_json=as_json)


def _chosen(data: str | None, database: str | None, settings: object) -> Settings:
    return settings_of({"data": data, "database": database, "settings": settings})


def _say(row: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(row))
    else:
        say_rows([row], as_json=False)
