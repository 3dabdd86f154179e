"""The commands and their options, as scripts and operators rely on them."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from batchmill.cli.exit import Exit, Stop
from batchmill.settings import BadSettings, Settings, load_settings

app = typer.Typer(name="batchmill", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
keys_app = typer.Typer(no_args_is_help=True, help="API keys: who may ask, for what, until when.")
orgs_app = typer.Typer(no_args_is_help=True, help="Organisations, and what each may use.")
models_app = typer.Typer(no_args_is_help=True, help="The built-in model.")
app.add_typer(keys_app, name="keys")
app.add_typer(orgs_app, name="orgs")
app.add_typer(models_app, name="models")

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
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ListOption = Annotated[bool, typer.Option("--json", help="Print a JSON list.")]


def main() -> None:
    """Run the command line; whatever cannot be done ends with one sentence and its exit code."""
    try:
        app()
    except Stop as stop:
        print(stop, file=sys.stderr)  # noqa: T201 - this is how a command speaks
        sys.exit(stop.code)


@app.command()
def serve(
    *,
    data: DataOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. [default: 8000]")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, for Prometheus; 0 takes a free one. [default: --port + 1]")
    ] = None,
    backend: BackendOption = None,
    backend_key_env: KeyOption = None,
    backend_timeout: TimeoutOption = None,
    on_unknown_outcome: UnknownOption = None,
    limits: LimitsOption = None,
    window: WindowOption = None,
    polite: PoliteOption = None,
    transport: TransportOption = None,
    retention: Annotated[
        str | None, typer.Option(help="How long files last that name no time of their own. [default: for ever]")
    ] = None,
    database: Annotated[str | None, typer.Option(help="Database URL. [default: SQLite under --data]")] = None,
    blobs: Annotated[str | None, typer.Option(help="Bucket URL. [default: files under --data]")] = None,
    settings: FileOption = None,
    drain: DrainOption = None,
    lease: LeaseOption = None,
    model: Annotated[Path | None, typer.Option(help="GGUF file for the built-in engine.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json. [default: text]")] = None,
) -> None:
    """Serve the Batch API: the API, one worker and, without --backend, the built-in model."""
    flags: dict[str, Any] = {
        "data": data,
        "host": host,
        "port": port,
        "metrics_port": metrics_port,
        "backend": backend or None,
        "backend_key_env": backend_key_env or None,
        "backend_timeout": backend_timeout or None,
        "on_unknown_outcome": on_unknown_outcome,
        "limits": limits,
        "window": window,
        "polite": polite,
        "transport": transport,
        "retention": retention,
        "database": database,
        "blobs": blobs,
        "settings": settings,
        "drain": drain,
        "lease": lease,
        "model": model,
        "log_format": log_format,
    }
    from batchmill.cli.serve import run_serve  # noqa: PLC0415 - half a second of imports that `--help` does not need

    run_serve(_settings(flags))


@app.command()
def verify(
    *,
    data: DataOption = None,
    settings: FileOption = None,
    source: Annotated[Path | None, typer.Option("--input", help="The input of a `run` whose state is checked.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check all rows and bytes, with or without a running server: 0 if sound, 1 if something is damaged."""
    from batchmill.cli.verify import run_verify  # noqa: PLC0415 - as above

    if not run_verify(_settings({"data": data, "settings": settings}), source=source, as_json=as_json, say=_say):
        raise typer.Exit(Exit.FAULT)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="New or empty folder; `serve --data` works on it afterwards.")],
    *,
    data: DataOption = None,
    settings: FileOption = None,
) -> None:
    """Copy everything, of a running server too, and check the copy."""
    from batchmill.cli.backup import run_backup  # noqa: PLC0415 - as above

    if not run_backup(_settings({"data": data, "settings": settings}), folder=folder, say=_say):
        raise typer.Exit(Exit.FAULT)


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="The requests, one a line; read where they lie.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The results; appears when it is complete.")],
    backend: BackendOption = None,
    backend_key_env: KeyOption = None,
    backend_timeout: TimeoutOption = None,
    on_unknown_outcome: UnknownOption = None,
    window: WindowOption = None,
    polite: PoliteOption = None,
    transport: TransportOption = None,
    endpoint: EndpointOption = None,
    limits: Annotated[str | None, typer.Option(help="kimi or open. [default: open]")] = None,
    settings: FileOption = None,
    drain: DrainOption = None,
    lease: LeaseOption = None,
    again: Annotated[bool, typer.Option("--again", help="Start over: forget an earlier run and its output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Run one input without a server; the same command goes on after Ctrl-C or a crash.

    Errors go to OUTPUT.errors.jsonl, the state is kept in OUTPUT.run. Exit codes: 0 every line succeeded, 1 the input
    is bad, 2 usage, 3 some lines failed, 4 another run works on this output, 6 no built-in model, 70 a fault of ours,
    130 interrupted.
    """
    flags = {
        "backend": backend or None,
        "backend_key_env": backend_key_env or None,
        "backend_timeout": backend_timeout or None,
        "on_unknown_outcome": on_unknown_outcome,
        "window": window,
        "polite": polite,
        "transport": transport,
        "limits": limits,
        "settings": settings,
        "drain": drain,
        "lease": lease,
    }
    from batchmill.cli.run import run_file  # noqa: PLC0415 - as above
    from batchmill.cli.run_files import RunFiles  # noqa: PLC0415 - as above

    files = RunFiles(input=source, output=output)
    chosen = _settings(flags)
    open_unless_said = {} if "limits" in chosen.model_fields_set else {"limits": "open"}
    mine = {"data": files.state, "database": None, "blobs": None}  # whatever the environment says of a server
    chosen = chosen.model_copy(update=mine | open_unless_said)
    raise typer.Exit(run_file(chosen, files, endpoint=endpoint, again=again, quiet=quiet))


@app.command()
def check(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="The requests, one a line; - is standard input.")],
    *,
    limits: LimitsOption = None,
    endpoint: EndpointOption = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that there is. Repeatable. [default: any]")] = None,
    settings: FileOption = None,
    every: Annotated[bool, typer.Option("--all", help="List every error, not only the first 1,000.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print {code, message, param, line} a line.")] = False,
) -> None:
    """List every bad line of an input without running anything. Exit codes: 0 all good, 1 bad lines, 2 usage."""
    from batchmill.assemble import limits_of  # noqa: PLC0415 - as above
    from batchmill.cli.check import check_input  # noqa: PLC0415 - as above

    chosen = _settings({"limits": limits, "settings": settings})
    code = check_input(
        source,
        limits=limits_of(chosen),
        endpoint=endpoint,
        models=model or (),
        catalogue=chosen.catalogue,
        every=every,
        as_json=as_json,
    )
    raise typer.Exit(code)


@keys_app.command("create")
def keys_create(
    *,
    data: DataOption = None,
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

    chosen = _settings({"data": data, "settings": settings})
    made = create_key(chosen, org=org, name=name, scopes=scope or (), expires_in=expires_in)
    _say(json.dumps(asdict(made)) if as_json else made.key)


@keys_app.command("list")
def keys_list(*, data: DataOption = None, settings: FileOption = None, as_json: ListOption = False) -> None:
    """List all keys, by id, hint and what they may; never the keys themselves."""
    from batchmill.cli.keys import show_keys  # noqa: PLC0415 - as above

    _list(show_keys(_settings({"data": data, "settings": settings})), as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(
    key_id: IdArgument, *, data: DataOption = None, settings: FileOption = None, as_json: JsonOption = False
) -> None:
    """Let a key be good for nothing from the next request on."""
    from batchmill.cli.keys import end_key  # noqa: PLC0415 - as above

    end_key(_settings({"data": data, "settings": settings}), key_id=key_id)
    _say(json.dumps({"id": key_id, "revoked": True}) if as_json else f"{key_id} is revoked.")


@keys_app.command("rotate")
def keys_rotate(
    key_id: IdArgument,
    *,
    data: DataOption = None,
    settings: FileOption = None,
    overlap: Annotated[str, typer.Option(help="How long the old key stays good; 0 ends it at once.")] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="Print {id, key, org} as JSON.")] = False,
) -> None:
    """Make a key like another, print it, this once, and let the old one expire."""
    from batchmill.cli.keys import rotate_key  # noqa: PLC0415 - as above

    made = rotate_key(_settings({"data": data, "settings": settings}), key_id=key_id, overlap=overlap)
    _say(json.dumps(asdict(made)) if as_json else made.key)


@orgs_app.command("create")
def orgs_create(
    name: NameArgument,
    *,
    data: DataOption = None,
    settings: FileOption = None,
    max_files: FilesOption = None,
    max_bytes: BytesOption = None,
    models: ModelsOption = None,
    requests_per_minute: RateOption = None,
    weight: WeightOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an organisation."""
    from batchmill.cli.orgs import create_org  # noqa: PLC0415 - as above

    limits = {"max_files": max_files, "max_bytes": max_bytes, "models": models}
    limits |= {"requests_per_minute": requests_per_minute, "weight": weight}
    made = create_org(_settings({"data": data, "settings": settings}), name=name, limits=limits)
    _say(json.dumps(made) if as_json else _row(made))


@orgs_app.command("list")
def orgs_list(*, data: DataOption = None, settings: FileOption = None, as_json: ListOption = False) -> None:
    """List all organisations and what each may use; - is what the server allows everyone."""
    from batchmill.cli.orgs import show_orgs  # noqa: PLC0415 - as above

    _list(show_orgs(_settings({"data": data, "settings": settings})), as_json=as_json)


@orgs_app.command("set")
def orgs_set(
    name: NameArgument,
    *,
    data: DataOption = None,
    settings: FileOption = None,
    max_files: FilesOption = None,
    max_bytes: BytesOption = None,
    models: ModelsOption = None,
    requests_per_minute: RateOption = None,
    weight: WeightOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change what an organisation may use, from the next request on; the word none removes a limit."""
    from batchmill.cli.orgs import set_org  # noqa: PLC0415 - as above

    limits = {"max_files": max_files, "max_bytes": max_bytes, "models": models}
    limits |= {"requests_per_minute": requests_per_minute, "weight": weight}
    changed = set_org(_settings({"data": data, "settings": settings}), name=name, limits=limits)
    _say(json.dumps(changed) if as_json else _row(changed))


@models_app.command("fetch")
def models_fetch() -> None:
    """Fetch the built-in model ahead of its first use."""
    from batchmill.backends.weights import WeightsMissing, default_cache_dir, find_or_fetch  # noqa: PLC0415 - as above

    try:
        path = find_or_fetch(default_cache_dir(), lambda line: print(line, file=sys.stderr))  # noqa: T201 - progress
    except WeightsMissing as fault:
        raise Stop(str(fault), Exit.NO_BUILTIN_MODEL) from fault
    print(path)  # noqa: T201 - the command's answer


def _list(rows: list[dict[str, object]], *, as_json: bool) -> None:
    """Print rows for people, under the names of their columns, or as JSON, where times are Unix seconds."""
    if as_json:
        _say(json.dumps(rows))
    elif rows:
        _say("\t".join(rows[0]))
        for row in rows:
            _say(_row(row))


def _row(row: dict[str, object]) -> str:
    return "\t".join(_cell(name, value) for name, value in row.items())


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and name.endswith("_at"):
        return datetime.fromtimestamp(value, UTC).isoformat()
    return ",".join(value) if isinstance(value, (list, tuple)) else str(value)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's answer


def _settings(flags: dict[str, Any]) -> Settings:
    try:
        return load_settings({name: value for name, value in flags.items() if value is not None})
    except BadSettings as fault:
        raise Stop(str(fault), Exit.USAGE) from fault
