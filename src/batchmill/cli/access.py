"""The commands `batchmill keys` and `batchmill orgs`, and their options."""

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
    shown,
)

keys_app = typer.Typer(no_args_is_help=True, help="API keys: who may ask, for what, until when.")
orgs_app = typer.Typer(no_args_is_help=True, help="Organisations, and what each may use.")


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
    from batchmill.cli.keys import create_key  # noqa: PLC0415 - as above

    chosen = settings_of({"data": data, "database": database, "settings": settings})
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

    say_rows(show_keys(settings_of({"data": data, "database": database, "settings": settings})), as_json=as_json)


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

    end_key(settings_of({"data": data, "database": database, "settings": settings}), key_id=key_id)
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

    made = rotate_key(
        settings_of({"data": data, "database": database, "settings": settings}), key_id=key_id, overlap=overlap
    )
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
    made = create_org(settings_of({"data": data, "database": database, "settings": settings}), name=name, limits=limits)
    say(json.dumps(made) if as_json else shown(made))


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

    say_rows(show_orgs(settings_of({"data": data, "database": database, "settings": settings})), as_json=as_json)


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
    changed = set_org(settings_of({"data": data, "database": database, "settings": settings}), name=name, limits=limits)
    say(json.dumps(changed) if as_json else shown(changed))
