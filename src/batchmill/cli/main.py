"""The commands and their options, as scripts and operators rely on them."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from batchmill.cli.exit import Exit, Stop
from batchmill.cli.local import check, convert, doctor, run
from batchmill.cli.operate import backends_app, keys_app, orgs_app
from batchmill.cli.option import (
    BackendOption,
    BlobsOption,
    DatabaseOption,
    DataOption,
    DrainOption,
    FileOption,
    JsonOption,
    KeyOption,
    LeaseOption,
    LimitsOption,
    LogOption,
    ModelOption,
    PoliteOption,
    TimeoutOption,
    TransportOption,
    UnknownOption,
    WindowOption,
    say,
    settings_of,
)
from batchmill.cli.remote import (
    cancel,
    fetch,
    files_app,
    list_,
    models_list,
    pause,
    priority,
    quote,
    results,
    resume,
    retry,
    show,
    submit,
    usage,
    watch,
    window,
)

_STDERR = 2
_SERVER, _CLIENT, _LOCAL = "Server", "Client", "Local"
app = typer.Typer(name="batchmill", no_args_is_help=True, pretty_exceptions_enable=False)
models_app = typer.Typer(no_args_is_help=True, help="The models of a server, and the built-in one.")


def main() -> None:
    """Run the command line; whatever cannot be done ends with one sentence and its exit code."""
    _open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr does: what it cannot show must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="batchmill")
    except Stop as stop:
        print(stop, file=sys.stderr)  # noqa: T201 - this is how a command speaks
        sys.exit(stop.code)


def _open_streams() -> None:
    """Open to nothing what is closed of the standard streams: else a socket gets its number, and a word is a fault."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(number, True)  # noqa: FBT003 - it takes no keyword
    os.close(number)
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - it lasts as long as the process


@app.command(rich_help_panel=_SERVER)
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
    database: DatabaseOption = None,
    blobs: BlobsOption = None,
    worker: Annotated[
        bool | None,
        typer.Option("--worker/--no-worker", help="With a worker beside the API, or without. [default: with]"),
    ] = None,
    settings: FileOption = None,
    drain: DrainOption = None,
    lease: LeaseOption = None,
    model: ModelOption = None,
    log_format: LogOption = None,
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
        "worker": worker,
        "settings": settings,
        "drain": drain,
        "lease": lease,
        "model": model,
        "log_format": log_format,
    }
    from batchmill.cli.serve import run_serve  # noqa: PLC0415 - half a second of imports that `--help` does not need

    run_serve(settings_of(flags))


@app.command(rich_help_panel=_SERVER)
def worker(
    *,
    data: Annotated[str | None, typer.Option(help="Folder for scratch files. [default: ./batchmill-data]")] = None,
    host: Annotated[str | None, typer.Option(help="Address of /metrics. [default: 127.0.0.1]")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, for Prometheus; 0 takes a free one. [default: 8001]")
    ] = None,
    backend: BackendOption = None,
    backend_key_env: KeyOption = None,
    backend_timeout: TimeoutOption = None,
    on_unknown_outcome: UnknownOption = None,
    limits: LimitsOption = None,
    window: WindowOption = None,
    polite: PoliteOption = None,
    transport: TransportOption = None,
    database: DatabaseOption = None,
    blobs: BlobsOption = None,
    settings: FileOption = None,
    drain: DrainOption = None,
    lease: LeaseOption = None,
    model: ModelOption = None,
    log_format: LogOption = None,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Workers as actors on a Ray cluster, as many as needed.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(help="With --ray: the cluster's HOST:PORT. [default: one on this machine, or a new one]"),
    ] = None,
    least: Annotated[int, typer.Option("--min", min=0, help="With --ray: the fewest workers.")] = 1,
    most: Annotated[int, typer.Option("--max", min=0, help="With --ray: the most workers; 0 ends them all.")] = 4,
    engine: Annotated[
        str | None, typer.Option(help="With --ray: builtin or vllm, an engine beside each worker. [default: none]")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="With --engine vllm: GPUs for each worker.")] = 1,
    engine_option: Annotated[
        list[str] | None, typer.Option(help="With --engine vllm: an option of vLLM's own. Repeatable.")
    ] = None,
) -> None:
    """Work on the batches of servers elsewhere: one of any number of workers around one PostgreSQL and one bucket."""
    flags: dict[str, Any] = {
        "data": data,
        "host": host,
        "metrics_port": metrics_port,
        "backend": backend or None,
        "backend_key_env": backend_key_env or None,
        "backend_timeout": backend_timeout or None,
        "on_unknown_outcome": on_unknown_outcome,
        "limits": limits,
        "window": window,
        "polite": polite,
        "transport": transport,
        "database": database,
        "blobs": blobs,
        "settings": settings,
        "drain": drain,
        "lease": lease,
        "model": model,
        "log_format": log_format,
    }
    if on_ray:
        try:
            from batchmill.cli.fleet import run_fleet  # noqa: PLC0415 - as above
        except ModuleNotFoundError as missing:
            if missing.name != "ray":
                raise
            raise Stop("--ray needs an extra: pip install 'batchmill[ray]'", Exit.USAGE) from missing
        run_fleet(
            settings_of(flags),
            address=address,
            least=least,
            most=most,
            engine=engine,
            gpus=gpus,
            options=engine_option or (),
        )
        return
    from batchmill.cli.serve import run_worker  # noqa: PLC0415 - as above

    run_worker(settings_of(flags))


@app.command(rich_help_panel=_SERVER)
def migrate(*, data: DataOption = None, database: DatabaseOption = None, settings: FileOption = None) -> None:
    """Bring the tables up to this version; every start of `serve` and `worker` does so, too."""
    from batchmill.cli.rows import in_rows  # noqa: PLC0415 - as above
    from batchmill.store.migrate import revision  # noqa: PLC0415 - as above

    chosen = settings_of({"data": data, "database": database, "settings": settings})
    say(f"The tables are at revision {in_rows(chosen, revision)}.")


@app.command(rich_help_panel=_SERVER)
def status(
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    settings: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the workers and what they hold, what is left to do and why it waits, and how the backends are."""
    from batchmill.cli import status as shown  # noqa: PLC0415 - as above

    overview = shown.look(settings_of({"data": data, "database": database, "settings": settings}))
    for line in [json.dumps(shown.as_json(overview))] if as_json else shown.as_text(overview):
        say(line)


@app.command(rich_help_panel=_SERVER)
def verify(
    *,
    data: DataOption = None,
    database: DatabaseOption = None,
    blobs: BlobsOption = None,
    settings: FileOption = None,
    source: Annotated[Path | None, typer.Option("--input", help="The input of a `run` whose state is checked.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check all rows and bytes, with or without a running server: 0 if sound, 1 if something is damaged."""
    from batchmill.cli.verify import run_verify  # noqa: PLC0415 - as above

    chosen = settings_of({"data": data, "database": database, "blobs": blobs, "settings": settings})
    if not run_verify(chosen, source=source, as_json=as_json, say=say):
        raise typer.Exit(Exit.FAULT)


@app.command(rich_help_panel=_SERVER)
def backup(
    folder: Annotated[Path, typer.Argument(help="New or empty folder; `serve --data` works on it afterwards.")],
    *,
    data: DataOption = None,
    settings: FileOption = None,
) -> None:
    """Copy everything, of a running server too, and check the copy."""
    from batchmill.cli.backup import run_backup  # noqa: PLC0415 - as above

    if not run_backup(settings_of({"data": data, "settings": settings}), folder=folder, say=say):
        raise typer.Exit(Exit.FAULT)


@models_app.command("fetch")
def models_fetch() -> None:
    """Fetch the built-in model ahead of its first use."""
    from batchmill.backends.weights import WeightsMissing, default_cache_dir, find_or_fetch  # noqa: PLC0415 - as above

    try:
        path = find_or_fetch(default_cache_dir(), lambda line: print(line, file=sys.stderr))  # noqa: T201 - progress
    except WeightsMissing as fault:
        raise Stop(str(fault), Exit.NO_BUILTIN_MODEL) from fault
    print(path)  # noqa: T201 - the command's answer


models_app.command("list")(models_list)

_ASKING = (submit, watch, list_, show, results, fetch, retry, pause, resume, cancel, window, priority, quote, usage)
for asking in _ASKING:
    dashes = {"ignore_unknown_options": asking is priority}  # -5 is a priority, and no option
    app.command(asking.__name__.rstrip("_"), rich_help_panel=_CLIENT, context_settings=dashes)(asking)
for working in (run, check, convert, doctor):
    app.command(rich_help_panel=_LOCAL)(working)
for name, group in {"keys": keys_app, "orgs": orgs_app, "backends": backends_app}.items():
    app.add_typer(group, name=name, rich_help_panel=_SERVER)
for name, group in {"files": files_app, "models": models_app}.items():
    app.add_typer(group, name=name, rich_help_panel=_CLIENT)
