"""The commands that need no server, `batchmill run`, `check`, `convert` and `doctor`, and their options."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from batchmill.cli.exit import Exit, RunExit, Stop
from batchmill.cli.option import (
    BackendOption,
    BlobsOption,
    DatabaseOption,
    DataOption,
    DrainOption,
    EndpointOption,
    FileOption,
    JsonOption,
    KeyOption,
    LeaseOption,
    LimitsOption,
    ModelOption,
    PoliteOption,
    TimeoutOption,
    TransportOption,
    UnknownOption,
    WindowOption,
    say,
    settings_of,
)


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
    chosen = settings_of(flags)
    open_unless_said = {} if "limits" in chosen.model_fields_set else {"limits": "open"}
    mine = {"data": files.state, "database": None, "blobs": None}  # whatever the environment says of a server
    chosen = chosen.model_copy(update=mine | open_unless_said)
    raise typer.Exit(run_file(chosen, files, endpoint=endpoint, again=again, quiet=quiet))


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
    from batchmill.assemble.limits import limits_of  # noqa: PLC0415 - as above
    from batchmill.cli.check import check_input  # noqa: PLC0415 - as above

    chosen = settings_of({"limits": limits, "settings": settings})
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


def convert(
    source: Annotated[
        Path | None, typer.Argument(metavar="INPUT", help="The rows: .csv, .tsv, .jsonl or .parquet, by its name.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="What is written; appears when it is whole.")],
    model: Annotated[str | None, typer.Option(help="The model that all rows go to.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What is asked of each row, with {column} for its fields.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message, with {column} as in --prompt.")] = None,
    endpoint: Annotated[
        str, typer.Option(help="/v1/chat/completions, /v1/completions or /v1/embeddings.")
    ] = "/v1/chat/completions",
    column: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Column of the custom_ids. [default: row-1, row-2, …]")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The most that an answer may have.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE, a member of every body, such as temperature=0.2. Repeatable."),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Between the fields of CSV, there and back, such as ';'. [default: ,]")
    ] = None,
    back: Annotated[
        list[Path] | None,
        typer.Option(help="Other way round: result files, joined to the rows of --join. Repeatable."),
    ] = None,
    rows: Annotated[Path | None, typer.Option("--join", help="With --back: the INPUT that they came from.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make requests of a table's rows, by a template; or join results to the rows, with --back and --join.

    In a template a brace that is meant as itself is written twice: {{ or }}. Exit codes: 0 done, 1 bad rows, 2 usage.
    """
    from batchmill.cli import convert as command  # noqa: PLC0415 - as above
    from batchmill.cli.connect import note  # noqa: PLC0415 - as above

    if delimiter is not None and len(delimiter) != 1:
        raise Stop("--delimiter: give one character.", RunExit.USAGE)
    if back:
        from batchmill.cli.joining import join  # noqa: PLC0415 - as above

        if source is not None or rows is None:
            raise Stop("--back takes its rows from --join, and no INPUT beside.", RunExit.USAGE)
        count, missing = join(back, rows, output, column=column, delimiter=delimiter)
        hint = " (is --id the column that it was?)" if missing == count else ""
        note(f"{count:,} rows in {output}{f'; {missing:,} have no result{hint}' if missing else ''}.")
        if as_json:
            say(json.dumps({"output": str(output), "rows": count, "without_result": missing}))
        return
    if source is None or rows is not None:
        raise Stop("Name an INPUT; --join goes with --back.", RunExit.USAGE)
    recipe = command.read_recipe(
        model=model,
        prompt=prompt,
        system=system,
        endpoint=endpoint,
        column=column,
        max_tokens=max_tokens,
        sets=sets or (),
    )
    count = command.convert(source, output, recipe, delimiter=delimiter)
    note(f"{count:,} requests in {output}.")
    if as_json:
        say(json.dumps({"output": str(output), "requests": count}))


def doctor(
    *,
    data: DataOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [default: 8000]")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics. [default: --port + 1]")] = None,
    backend: BackendOption = None,
    backend_key_env: KeyOption = None,
    database: DatabaseOption = None,
    blobs: BlobsOption = None,
    settings: FileOption = None,
    model: ModelOption = None,
    server: Annotated[
        str | None,
        typer.Option(
            envvar="BATCHMILL_SERVER", help="A running server to ask, too, with the key in BATCHMILL_API_KEY."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is set up, what is wrong and what to do; changes nothing. Exit codes: 0 sound, 1 there is a problem."""
    from batchmill.cli.doctor import run_doctor  # noqa: PLC0415 - as above

    flags = {
        "data": data,
        "host": host,
        "port": port,
        "metrics_port": metrics_port,
        "backend": backend or None,
        "backend_key_env": backend_key_env or None,
        "database": database,
        "blobs": blobs,
        "settings": settings,
        "model": model,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    key = os.environ.get("BATCHMILL_API_KEY") or None
    if not run_doctor(given, server=server, key=key, as_json=as_json, say=say):
        raise typer.Exit(Exit.FAULT)
