"""The rows of what was used in a day, and of what is still to be done: what budgets are judged by."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select, tuple_

from batchmill.spec.objects import Usage
from batchmill.spec.states import Status
from batchmill.spec.usage import DayUse, Place, Used
from batchmill.store.database import Transaction
from batchmill.store.tables import api_key, batch, slice_, usage_day

_TOKENS = Usage.__struct_fields__
_COUNTS = ("requests", "failed", *_TOKENS)


class Whose(NamedTuple):
    """Whose use it is: sorts in the order in which the rows are locked. `key_id` is empty where nobody has noted it."""

    organisation_id: str
    key_id: str
    model: str


def count_usage(tx: Transaction, used: Mapping[Whose, Used], *, day: int) -> None:
    """Add to what was used in a day (days since 1970-01-01), at the very end of a transaction: see the table."""
    if not used:
        return
    added = tx.insert(usage_day)
    more = {name: usage_day.c[name] + added.excluded[name] for name in _COUNTS}
    rows = [
        {
            **whose._asdict(),
            "day": day,
            "requests": of.requests,
            "failed": of.failed,
            **{name: getattr(of.tokens, name) for name in _TOKENS},
        }
        for whose, of in sorted(used.items(), key=lambda item: item[0])
    ]
    statement = added.on_conflict_do_update(index_elements=list(usage_day.primary_key), set_=more)
    for row in rows:  # one by one: no driver may order them otherwise
        tx.connection.execute(statement, row)


def list_usage(
    tx: Transaction,
    *,
    organisation_id: str,
    first: int,
    last: int,
    limit: int,
    after: Place | None = None,
    by_key: bool = True,
) -> Sequence[DayUse]:
    """Return at most `limit` entries of what an organisation used from the day `first` to `last`, beyond `after`.

    The oldest come first, by key and model: in the order of the primary key, so that a page reads no more than it has.
    If not `by_key`, the entries of all keys are one.
    """
    row = usage_day.c
    order: tuple[Any, ...] = (row.day, row.key_id, row.model) if by_key else (row.day, row.model)
    if by_key:
        query = select(*order, *(row[name] for name in _COUNTS), api_key.c.name.label("name"))
        query = query.outerjoin(api_key, api_key.c.id == row.key_id)
    else:
        query = select(*order, *(func.sum(row[name]).label(name) for name in _COUNTS)).group_by(*order)
    if after is not None:
        first = max(first, after.day)
        query = query.where(tuple_(*order) > tuple(getattr(after, column.name) for column in order))
    query = query.where(row.organisation_id == organisation_id, row.day.between(first, last))
    return [
        DayUse(
            day=row["day"],
            model=row["model"],
            key_id=row.get("key_id") or None,
            key_name=row.get("name"),
            used=Used(
                requests=int(row["requests"]),
                failed=int(row["failed"]),
                tokens=Usage(**{name: int(row[name]) for name in _TOKENS}),
            ),
        )
        for row in tx.connection.execute(query.order_by(*order).limit(limit)).mappings()
    ]


def tokens_used(tx: Transaction, *, organisation_id: str, day: int) -> int:
    """Return the tokens, in and out, that an organisation used in a day."""
    total = func.coalesce(func.sum(usage_day.c.input_tokens + usage_day.c.output_tokens), 0)
    mine = select(total).where(usage_day.c.organisation_id == organisation_id, usage_day.c.day == day)
    return int(tx.connection.execute(mine).scalar_one())


def tokens_enqueued(tx: Transaction, *, organisation_id: str) -> Mapping[str, int]:
    """Return the tokens, by estimate and model, of an organisation's batches in progress that are not done yet.

    A Slice counts until its last line is done; one that an older version planned counts as the average of its batch.
    """
    tokens = func.sum(func.coalesce(slice_.c.tokens, batch.c.slice_tokens))
    query = (
        select(slice_.c.model, tokens.label("tokens"))
        .join(batch, batch.c.id == slice_.c.batch_id)
        .where(batch.c.organisation_id == organisation_id, batch.c.status == Status.IN_PROGRESS.value, slice_.c.open)
        .group_by(slice_.c.model)
    )
    return {row.model: int(row.tokens) for row in tx.connection.execute(query)}
