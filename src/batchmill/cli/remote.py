"""The commands that ask a server, and their options."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from batchmill.cli.connect import (
    DEFAULT_SERVER,
    BatchArgument,
    JsonOption,
    ServerOption,
    extra,
    note,
    read_id,
    say_json,
    say_table,
    talk,
)
from batchmill.cli.exit import ClientExit, Stop
from batchmill.client.failure import Failed, Refused
from batchmill.client.http import Client, Json
from batchmill.client.text import shown

SourceArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="The requests, one a line, or the id of a File that is uploaded.")
]
WindowOption = Annotated[str, typer.Option(help="Time until all is done, such as 24h or 7d.")]
EndpointOption = Annotated[str | None, typer.Option(help="What each line's url must be. [default: the first line's]")]
CheckOption = Annotated[
    bool, typer.Option("--check/--no-check", help="Check the file on this machine before anything is sent.")
]
GroupOption = Annotated[str | None, typer.Option(help="Only the failed lines of one cause; `show` lists their ids.")]
WatchOption = Annotated[bool, typer.Option("--watch", help="Watch it to its end, on stderr, and exit as `watch` does.")]
MostOption = Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")]
EveryOption = Annotated[bool, typer.Option("--all", help="All of them.")]


def submit(
    source: SourceArgument,
    *,
    window: WindowOption = "24h",
    endpoint: EndpointOption = None,
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE to keep with the batch. Repeatable.")] = None,
    check: CheckOption = True,
    watch: WatchOption = False,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Upload a file of requests, make a batch of it, and print the batch's id."""
    from batchmill.cli import submit as command  # noqa: PLC0415 - imports that `--help` does not need

    order = command.Order(
        source=source,
        window=window,
        endpoint=endpoint,
        metadata=command.read_metadata(metadata or ()),
        checked=check,
    )
    command.check_first(order, as_json=as_json)
    talk(server, lambda client: command.submit(client, order, as_json=as_json, watched=watch), as_json=as_json)


def quote(
    source: SourceArgument,
    *,
    window: WindowOption = "24h",
    endpoint: EndpointOption = None,
    trial: Annotated[int, typer.Option(min=0, max=100, help="Really run its first so many lines.")] = 0,
    check: CheckOption = True,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Say what a batch would cost and when it would be done; a file stays uploaded, to be submitted by its id.

    Exit codes: 0 valid, 1 the input holds bad lines.
    """
    from batchmill.cli import submit as command  # noqa: PLC0415 - as above
    from batchmill.cli.batches import describe_quote  # noqa: PLC0415 - as above

    order = command.Order(source=source, window=window, endpoint=endpoint, metadata=None, checked=check)
    command.check_first(order, as_json=as_json)

    async def ask(client: Client) -> ClientExit:
        found = await command.quote(client, order, trial=trial)
        if as_json:
            say_json(found)
        for line in () if as_json else describe_quote(found, now=time.time()):
            _say(line)
        return ClientExit.GOOD if found.get("valid") else ClientExit.REFUSED

    talk(server, ask, as_json=as_json)


def watch(batch: BatchArgument, *, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Watch a batch to its end.

    Exit codes: 0 every line succeeded, 1 refused, 2 usage, 3 some lines failed, 4 the batch failed, 5 expired,
    6 cancelled, 7 no server there, 130 interrupted (the batch goes on).
    """
    from batchmill.cli import watching  # noqa: PLC0415 - as above

    batch_id = read_id("BATCH", batch)
    talk(server, lambda client: watching.watch(client, batch_id, as_json=as_json, stream=sys.stdout), as_json=as_json)


def list_(
    *,
    status: Annotated[str | None, typer.Option(help="Only those of this status; several with commas between.")] = None,
    limit: MostOption = 20,
    every: EveryOption = False,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """List batches, the newest first."""
    from batchmill.cli.batches import batch_row, list_batches  # noqa: PLC0415 - as above

    async def ask(client: Client) -> ClientExit:
        found = [each async for each in list_batches(client, status=status, most=None if every else limit)]
        _say_list(found, [batch_row(each) for each in found], as_json=as_json)
        return ClientExit.GOOD

    talk(server, ask, as_json=as_json)


def show(batch: BatchArgument, *, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Show all that is known of a batch: times, files, counts, why lines failed, what is wrong with its input."""
    from batchmill.cli.batches import describe_batch, progress_of  # noqa: PLC0415 - as above

    batch_id = read_id("BATCH", batch)

    async def ask(client: Client) -> ClientExit:
        found = await client.get(f"/batches/{batch_id}")
        if as_json:
            say_json(found)
            return ClientExit.GOOD
        for line in describe_batch(found, await progress_of(client, batch_id), now=time.time()):
            _say(line)
        return ClientExit.GOOD

    talk(server, ask, as_json=as_json)


def results(
    batch: BatchArgument,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the batch is final.")] = False,
    status: Annotated[str | None, typer.Option(help="Only lines that succeeded, or failed.")] = None,
    error_group: GroupOption = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="With the batches that retried its lines, as if all were one.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write to. [default: standard output]")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: Annotated[bool, typer.Option("--json", help="As always: result lines are JSON.")] = False,
) -> None:
    """Print result lines in the order in which they were done, while the batch runs or afterwards."""
    from batchmill.cli.keeping import print_results  # noqa: PLC0415 - as above
    from batchmill.client.results import Chosen  # noqa: PLC0415 - as above

    if status not in {None, "succeeded", "failed"}:
        raise Stop(f"--status: {shown(status)!r} is neither succeeded nor failed.", ClientExit.USAGE)
    batch_id = read_id("BATCH", batch)
    chosen = Chosen(status=status, error_group=error_group, merged=merged, follow=follow)
    talk(server, lambda client: print_results(client, batch_id, chosen, output=output), as_json=as_json)


def fetch(
    batch: BatchArgument,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; made if it is new.")] = Path(),
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Download the output and the error file; what is there is not fetched again, and a part is gone on with."""
    from batchmill.cli.keeping import keep_files  # noqa: PLC0415 - as above

    batch_id = read_id("BATCH", batch)
    talk(server, lambda client: keep_files(client, batch_id, output, as_json=as_json), as_json=as_json)


def retry(
    batch: BatchArgument,
    *,
    error_group: GroupOption = None,
    window: Annotated[str | None, typer.Option(help="Time for it. [default: the batch's own]")] = None,
    watch: WatchOption = False,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Run the failed lines of a final batch again, as a batch of their own, and print its id."""
    from batchmill.cli import watching  # noqa: PLC0415 - as above
    from batchmill.client.again import run_again  # noqa: PLC0415 - as above

    batch_id = read_id("BATCH", batch)
    asked = {"error_group": error_group, "completion_window": window}

    async def ask(client: Client) -> ClientExit:
        try:
            given = {name: value for name, value in asked.items() if value is not None}
            child = await client.post(f"/batches/{batch_id}/retry", given)
        except Refused as refused:
            if not refused.is_missing:
                raise
            parent = await client.get(f"/batches/{batch_id}")
            child = await run_again(client, parent, error_group=error_group, window=window, say=note)
        child_id = read_id("The server's answer", str(child.get("id")))
        if as_json:
            say_json(child)
        else:
            _say(child_id)
        if not watch:
            return ClientExit.GOOD
        return await watching.watch(client, child_id, as_json=as_json, stream=sys.stderr)

    talk(server, ask, as_json=as_json)


def pause(batch: BatchArgument, *, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Send no more of a batch's lines until it is resumed; its window keeps running."""
    _steer(server, batch, "pause", as_json=as_json)


def resume(batch: BatchArgument, *, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Let a paused batch go on."""
    _steer(server, batch, "resume", as_json=as_json)


def cancel(batch: BatchArgument, *, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """End a batch; what is done stays, and its other lines become errors."""
    _steer(server, batch, "cancel", as_json=as_json)


def window(
    batch: BatchArgument,
    duration: Annotated[str, typer.Argument(metavar="WINDOW", help="Counted from when it was made, such as 48h.")],
    *,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Change the time that a batch has."""
    _steer(server, batch, "window", {"completion_window": duration}, as_json=as_json)


def priority(
    batch: BatchArgument,
    number: Annotated[int, typer.Argument(metavar="N", help="From -100 to 100; the usual is 0.", min=-100, max=100)],
    *,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Let a batch go before others of its organisation, or after them."""
    _steer(server, batch, "priority", {"priority": number}, as_json=as_json)


def usage(
    *,
    since: Annotated[str | None, typer.Option("--from", help="First day, YYYY-MM-DD. [default: 30 days ago]")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last day. [default: today]")] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Show what was used, by day, key and model, and what is left of budgets; days are UTC's."""
    from batchmill.cli.batches import describe_budgets, usage_rows, whole_usage  # noqa: PLC0415 - as above

    async def ask(client: Client) -> ClientExit:
        asked = {"from": since, "to": until}
        try:
            found = await whole_usage(client, {name: day for name, day in asked.items() if day is not None})
        except Refused as refused:
            if refused.is_missing:
                raise Failed("This server does not tell of usage: that is an extension of Batchmill's.") from refused
            raise
        if as_json:
            say_json(found)
            return ClientExit.GOOD
        say_table(usage_rows(found))
        for line in describe_budgets(found):
            _say(line)
        return ClientExit.GOOD

    talk(server, ask, as_json=as_json)


files_app = typer.Typer(no_args_is_help=True, help="Files on a server.")


@files_app.command("list")
def files_list(
    *,
    purpose: Annotated[str | None, typer.Option(help="batch or batch_output. [default: both]")] = None,
    limit: MostOption = 20,
    every: EveryOption = False,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """List files, the newest first."""
    from batchmill.cli.batches import file_row, pages  # noqa: PLC0415 - as above

    async def ask(client: Client) -> ClientExit:
        query = {} if purpose is None else {"purpose": purpose}
        found = [each async for each in pages(client, "/files", query, most=None if every else limit)]
        _say_list(found, [file_row(each) for each in found], as_json=as_json)
        return ClientExit.GOOD

    talk(server, ask, as_json=as_json)


@files_app.command("delete")
def files_delete(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file's id, file_….")],
    *,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Delete a file; a batch that needs it goes on all the same."""
    file_id = read_id("FILE", file)

    async def ask(client: Client) -> ClientExit:
        found = await client.delete(f"/files/{file_id}")
        if as_json:
            say_json(found)
        else:
            _say(f"{file_id} is deleted.")
        return ClientExit.GOOD

    talk(server, ask, as_json=as_json)


def models_list(*, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """List the models that a server has."""
    from batchmill.cli.batches import model_row  # noqa: PLC0415 - as above

    async def ask(client: Client) -> ClientExit:
        found = [each for each in (await client.get("/models")).get("data") or () if isinstance(each, dict)]
        _say_list(found, [model_row(each) for each in found], as_json=as_json)
        return ClientExit.GOOD

    talk(server, ask, as_json=as_json)


def _steer(server: str, batch: str, action: str, body: Mapping[str, Any] | None = None, *, as_json: bool) -> None:
    """Tell a server what to do with a batch, and say how it stands."""
    batch_id = read_id("BATCH", batch)

    async def ask(client: Client) -> ClientExit:
        if action == "cancel":  # the contract's own: every server has it
            found = await client.post(f"/batches/{batch_id}/cancel")
        else:
            found = await extra(client, batch_id, action, body)
        if as_json:
            say_json(found)
        else:
            _say(_standing(found))
        return ClientExit.GOOD

    talk(server, ask, as_json=as_json)


def _standing(batch: Json) -> str:
    from batchmill.cli.batches import batch_row  # noqa: PLC0415 - as above

    row = batch_row(batch)
    before = f", priority {shown(batch['priority'])}" if batch.get("priority") else ""
    stands = f"{shown(row['status'])}, {shown(row['done'])} lines, until {row['deadline']}"
    return f"{shown(row['id'])}: {stands}{before}"


def _say_list(found: list[Json], rows: list[dict[str, object]], *, as_json: bool) -> None:
    """Print objects one a line as JSON, or a table of them."""
    if as_json:
        for each in found:
            say_json(each)
    elif rows:
        say_table(rows)
    else:
        note("None.")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's answer
