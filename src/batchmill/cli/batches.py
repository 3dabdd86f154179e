"""What the client commands say of batches, files, models, usage and quotes: text for people, from the API's objects."""

from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from batchmill.client.failure import Refused
from batchmill.client.follow import has_batch
from batchmill.client.http import Client, Json, Query
from batchmill.client.progress import Progress, read_progress
from batchmill.client.text import money, shown
from batchmill.client.watch import describe, plain, span

_PAGE = 100
_ERRORS = 20  # of a batch's input, that are shown
_FACTS = ("endpoint", "model", "parent_id", "input_file_id", "output_file_id", "error_file_id", "priority")
_TIMES = ("created_at", "in_progress_at", "paused_at", "finalizing_at", "cancelling_at")
_ENDS = ("completed_at", "failed_at", "expired_at", "cancelled_at")


async def pages(client: Client, path: str, query: Query, *, most: int | None) -> AsyncIterator[Json]:
    """Yield the objects of a list, newest first, page by page; `most` of them, None for all."""
    after: str | None = None
    left = most
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = await client.get(path, {**query, "limit": size} | ({} if after is None else {"after": after}))
        found = [each for each in page.get("data") or () if isinstance(each, dict)]
        for each in found:
            yield each
        left = None if left is None else left - len(found)
        if not found or not page.get("has_more"):
            return
        after = str(found[-1].get("id"))


async def list_batches(client: Client, *, status: str | None, most: int | None) -> AsyncIterator[Json]:
    """Yield batches, newest first; of these statuses, with commas between, where the server knows no filter, too.

    Raises:
        Refused: the server refuses it.
    """
    wanted = None if status is None else {each.strip() for each in status.split(",")}
    left = most
    async for batch in _filtered(client, status):
        if wanted is not None and batch.get("status") not in wanted:
            continue
        yield batch
        left = None if left is None else left - 1
        if left == 0:
            return


async def _filtered(client: Client, status: str | None) -> AsyncIterator[Json]:
    if status is not None:
        try:
            async for batch in pages(client, "/batches", {"status": status}, most=None):
                yield batch
        except Refused as refused:
            if refused.status != 400 or "unknown" not in refused.message.lower():  # noqa: PLR2004 - HTTP's own
                raise
        else:
            return
    async for batch in pages(client, "/batches", {}, most=None):
        yield batch


def batch_row(batch: Json) -> dict[str, object]:
    """Return a batch as a row of the list."""
    counts = batch.get("request_counts") or {}
    done = (counts.get("completed") or 0) + (counts.get("failed") or 0)
    return {
        "id": batch.get("id"),
        "status": _state(batch),
        "done": f"{done}/{counts.get('total') or 0}",
        "failed": counts.get("failed") or 0,
        "model": batch.get("model"),
        "created": _time(batch.get("created_at")),
        "deadline": _time(batch.get("expires_at")),
    }


def file_row(file: Json) -> dict[str, object]:
    """Return a File as a row of the list."""
    row = {name: file.get(name) for name in ("id", "purpose", "bytes", "filename")}
    return row | {"created": _time(file.get("created_at")), "expires": _time(file.get("expires_at"))}


def model_row(model: Json) -> dict[str, object]:
    """Return a model as a row of the list."""
    return {name: model.get(name) for name in ("id", "owned_by")}


async def progress_of(client: Client, batch_id: str) -> Progress | None:
    """Return how a batch goes; None where the server does not say.

    Raises:
        Refused: there is no such batch.
    """
    try:
        return read_progress(await client.get(f"/batches/{batch_id}/progress"))
    except Refused as refused:
        if not refused.is_missing:
            raise
        await has_batch(client, batch_id)
        return None


def describe_batch(batch: Json, progress: Progress | None, *, now: float) -> Iterator[str]:
    """Yield all that is known of a batch, line by line."""
    yield f"{shown(batch.get('id'))}  {shown(_state(batch))}"
    for member in _FACTS:
        if batch.get(member):
            yield f"  {member.removesuffix('_id').replace('_', ' ')}: {shown(batch[member])}"
    for member in (*_TIMES, *_ENDS):
        if batch.get(member) is not None:
            yield f"  {member.removesuffix('_at').replace('_', ' ')}: {_time(batch[member])}"
    yield f"  window: {shown(batch.get('completion_window'))}, until {_time(batch.get('expires_at'))}"
    yield from _described_counts(batch)
    for name, value in sorted((batch.get("metadata") or {}).items()):
        yield f"  metadata: {shown(name)} = {shown(value)}"
    if progress is not None and not progress.is_final:
        yield f"  {plain(progress, now)}"
    for group in () if progress is None else progress.error_groups:
        yield f"  {describe(group)}"
    errors = (batch.get("errors") or {}).get("data") or []
    yield from (f"  {line}" for line in described_errors(errors))


def _described_counts(batch: Json) -> Iterator[str]:
    counts, usage, cost = batch.get("request_counts") or {}, batch.get("usage") or {}, batch.get("cost")
    yield "  lines: " + ", ".join(f"{shown(counts.get(name) or 0)} {name}" for name in ("completed", "failed", "total"))
    if usage:
        told = ", ".join(f"{shown(usage.get(f'{name}_tokens') or 0)} {name}" for name in ("input", "output", "total"))
        yield f"  tokens: {told}"
    if cost:
        yield f"  cost: {_money(cost)}"


def described_errors(errors: list[Any]) -> Iterator[str]:
    """Yield what is wrong with an input, as the server lists it, one error a line."""
    for error in errors[:_ERRORS]:
        place = "the input" if error.get("line") is None else f"line {shown(error['line'])}"
        yield f"{place}: {shown(error.get('message'))} [{shown(error.get('code'))}]"
    if len(errors) > _ERRORS:
        yield f"… and {len(errors) - _ERRORS:,} more: --json has them all"


def describe_quote(quote: Json, *, now: float) -> Iterator[str]:
    """Yield what a batch would cost and how long it would take, line by line."""
    valid = "valid" if quote.get("valid") else "NOT VALID"
    yield f"{shown(quote.get('input_file_id'))}  {valid}: {_requests(quote)}"
    errors = (quote.get("errors") or {}).get("data") or []
    yield from (f"  {line}" for line in described_errors(errors))
    for model in quote.get("models") or ():
        yield f"  {shown(model.get('model'))}: {_requests(model)}, {_tokens(model)}"
    yield f"  in all: {_tokens(quote)}"
    told = quote.get("forecast") or {}
    if told.get("eta") is not None:
        late = told.get("margin") is not None and told["margin"] < 0
        margin = f", {span(-told['margin'])} after its deadline" if late else ""
        yield f"  done in {span(told['eta'] - now)} ({_time(told['eta'])}){margin}"
    if told.get("queue_position"):
        yield f"  {shown(told['queue_position'])} batches come before it"
    if quote.get("trial"):
        yield f"  trial: {shown(quote['trial'].get('id'))} runs its first lines: batchmill watch shows it"
    if quote.get("valid"):
        yield f"  to run it: batchmill submit {shown(quote.get('input_file_id'))}"


async def whole_usage(client: Client, query: Query) -> Json:
    """Return what was used as one page; a server that knows no pages tells all at once.

    Raises:
        Refused: the server refuses it.
    """
    page = whole = await client.get("/usage", query)
    data = list(page.get("data") or ())
    while page.get("has_more") and page.get("last_id"):
        page = await client.get("/usage", {**query, "after": str(page["last_id"])})
        data += page.get("data") or ()
    return {**whole, "data": data, "last_id": page.get("last_id"), "has_more": False}


def usage_rows(usage: Json) -> list[dict[str, object]]:
    """Return what was used, a row a day, key and model."""
    columns = ("day", "key_name", "model", "requests", "failed", "input_tokens", "cached_tokens", "output_tokens")
    rows = []
    for entry in usage.get("data") or ():
        cost = entry.get("cost")
        rows.append({name: entry.get(name) for name in columns} | {"cost": _money(cost) if cost else None})
    return rows


def describe_budgets(usage: Json) -> Iterator[str]:
    """Yield each budget and what is used of it."""
    for budget in usage.get("budgets") or ():
        model = f" of {shown(budget['model'])}" if budget.get("model") else ""
        used = "" if budget.get("used") is None else f"{_number(budget['used'])} of "
        until = f", anew at {_time(budget['resets_at'])}" if budget.get("resets_at") else ""
        yield f"budget {shown(budget.get('kind'))}{model}: {used}{_number(budget.get('limit'))}{until}"


def _tokens(found: Json) -> str:
    told = (
        f"{_number(found.get('prompt_tokens'))} prompt and {_number(found.get('completion_tokens'))} completion tokens"
    )
    return told + (f", {_money(found['cost'])}" if found.get("cost") else "")


def _state(batch: Json) -> str:
    status = str(batch.get("status"))
    return f"{status} (paused)" if batch.get("paused_at") and not any(batch.get(end) for end in _ENDS) else status


def _money(cost: Mapping[str, Any]) -> str:
    amount = cost.get("amount")
    return money(amount, cost.get("currency")) if isinstance(amount, int | float) else shown(amount)


def _requests(found: Json) -> str:
    count = found.get("requests")
    return f"{_number(count)} request{'s' * (count != 1)}"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else shown(value)


def _time(moment: object) -> str:
    if not isinstance(moment, int | float):
        return "-"
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (ValueError, OverflowError, OSError):
        return shown(moment)
