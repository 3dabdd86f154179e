"""What became of a batch's lines, as rows: shares of the backends, errors by cause; and all that is told of it at once.

All of it is written behind the batch's own row in one transaction: who holds that row is the only one that writes here,
so what was read a moment ago still holds, and nobody waits for two.
"""

from collections.abc import Sequence

import msgspec
from sqlalchemy import select

from batchmill.spec.groups import ErrorGroup
from batchmill.spec.models import Catalogue
from batchmill.spec.progress import GROUPS_KEPT, IDS_KEPT, Errors, ProgressObject, Share
from batchmill.store.batch import find_batch
from batchmill.store.database import Transaction
from batchmill.store.forecast import with_forecasts
from batchmill.store.receipt import with_costs
from batchmill.store.standing import count_ahead
from batchmill.store.tables import batch_share, error_group

_SUMS = ("lines", "prompt_tokens", "completion_tokens")


def add_shares(tx: Transaction, shares: Sequence[tuple[str, str, Share]]) -> None:
    """Add to what backends have done of batches, each with its id and its organisation's."""
    if not shares:
        return
    added = tx.insert(batch_share)
    sums = {name: batch_share.c[name] + added.excluded[name] for name in _SUMS}
    rows = [
        {"batch_id": batch_id, "organisation_id": organisation_id, **share.wire()}
        for batch_id, organisation_id, share in sorted(shares, key=lambda one: (one[0], one[2].backend))
    ]
    tx.connection.execute(added.on_conflict_do_update(index_elements=list(batch_share.primary_key), set_=sums), rows)


def add_errors(
    tx: Transaction, *, batch_id: str, organisation_id: str, errors: Sequence[Errors], most: int = GROUPS_KEPT
) -> None:
    """Count failed lines of a batch; beyond `most` groups no new one is kept. An example is that of the first time."""
    if not errors:
        return
    known = {found.group.id: found.custom_ids for found in _errors(tx, batch_id)}
    room = most - len(known)
    new = [told for told in errors if told.group.id not in known][: max(0, room)]
    rows = [
        {
            "batch_id": batch_id,
            "organisation_id": organisation_id,
            "id": told.group.id,
            "status": told.group.status,
            "code": told.group.code,
            "message": told.group.message,
            "example": told.example,
            "lines": told.count,
            "custom_ids": _first((*known.get(told.group.id, ()), *told.custom_ids)),
        }
        for told in (*(told for told in errors if told.group.id in known), *new)
    ]
    if not rows:
        return
    added = tx.insert(error_group)
    changed = {"lines": error_group.c.lines + added.excluded.lines, "custom_ids": added.excluded.custom_ids}
    tx.connection.execute(added.on_conflict_do_update(index_elements=list(error_group.primary_key), set_=changed), rows)


def find_progress(
    tx: Transaction, *, organisation_id: str, batch_id: str, catalogue: Catalogue, now: float
) -> ProgressObject | None:
    """Return how far a batch of the organisation is; `now` in Unix seconds."""
    found = find_batch(tx, organisation_id=organisation_id, batch_id=batch_id)
    if found is None:
        return None
    (foretold,) = with_costs(tx, with_forecasts(tx, [found], now=now), catalogue=catalogue)
    shares = select(batch_share).where(batch_share.c.batch_id == batch_id).order_by(batch_share.c.backend)
    return ProgressObject(
        batch=foretold.object,
        waiting=None if found.waiting is None else (found.waiting, found.waiting_since or int(now)),
        ahead=count_ahead(tx, batch_id=batch_id, status=found.object.status),
        retries=found.retries,
        shares=[
            Share(backend=row.backend, **{name: getattr(row, name) for name in _SUMS})
            for row in tx.connection.execute(shares)
        ],
        errors=_errors(tx, batch_id),
    )


def _errors(tx: Transaction, batch_id: str) -> Sequence[Errors]:
    rows = tx.connection.execute(select(error_group).where(error_group.c.batch_id == batch_id))
    return [
        Errors(
            group=ErrorGroup(row.id, row.status, row.code, row.message),
            count=row.lines,
            example=row.example,
            custom_ids=msgspec.json.decode(row.custom_ids, type=tuple[str, ...]),
        )
        for row in rows
    ]


def _first(custom_ids: Sequence[str]) -> str:
    return msgspec.json.encode(custom_ids[:IDS_KEPT]).decode()
