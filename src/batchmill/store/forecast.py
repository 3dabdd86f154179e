"""What the rows know of how batches in progress will go on."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import case, select

from batchmill.schedule.forecast import Recent, forecast
from batchmill.spec.states import Status
from batchmill.store.batch import Batch
from batchmill.store.database import Transaction
from batchmill.store.tables import batch


def with_forecasts(tx: Transaction, batches: Sequence[Batch], *, now: float) -> Sequence[Batch]:
    """Return these batches, those in progress with their forecasts; `now` in Unix seconds."""
    running = [found.id for found in batches if found.object.status is Status.IN_PROGRESS]
    known = _recent(tx, running) if running else {}
    return [_with_forecast(found, known[found.id], now) if found.id in known else found for found in batches]


def _recent(tx: Transaction, batch_ids: Sequence[str]) -> dict[str, Recent]:
    age = case((batch.c.counted_at <= tx.lease_now, tx.lease_now - batch.c.counted_at))
    query = select(
        batch.c.id,
        batch.c.recent_lines.label("lines"),
        batch.c.recent_tokens.label("tokens"),
        batch.c.recent_seconds.label("seconds"),
        batch.c.recent_prompt.label("prompt"),
        batch.c.recent_completion.label("completion"),
        age.label("age"),
    ).where(batch.c.id.in_(batch_ids))
    rows = (dict(row._mapping) for row in tx.connection.execute(query))  # noqa: SLF001 - SQLAlchemy's public view
    return {row.pop("id"): Recent(**row) for row in rows}


def _with_forecast(found: Batch, recent: Recent, now: float) -> Batch:
    facts, counts = found.object, found.object.counts
    progress = forecast(
        recent,
        left=counts.total - counts.completed - counts.failed,
        waits=found.waiting is not None or facts.paused_at is not None,
        now=now,
        expires_at=facts.expires_at,
    )
    return replace(found, object=replace(facts, progress=progress))
