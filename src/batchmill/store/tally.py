"""What a group commit adds to the row of its batch: counts, tokens, and the rate at which they come."""

from dataclasses import dataclass

from sqlalchemy import case, update

from batchmill.schedule.forecast import FADE_SECONDS
from batchmill.spec.objects import Usage
from batchmill.spec.states import Status
from batchmill.store.database import Transaction
from batchmill.store.tables import batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A batch right after a group commit was counted; `model` is its only one, None if it has several."""

    seq: int
    open_slices: int
    status: Status
    model: str | None
    key_id: str | None


def record_progress(
    tx: Transaction, *, batch_id: str, completed: int, failed: int, closed_slices: int, usage: Usage, retries: int = 0
) -> Progress:
    """Count the Results of one group commit, at the end of its transaction: the row is the busiest of all.

    Several batches of one commit are counted in the order of their ids, or two workers would wait for each other. Its
    rate is kept by the same statement; lines that came in nobody knows which time, as the first ones, count in none.
    So it is with what was still out when the batch was paused.
    """
    now = case((batch.c.paused_at.is_(None), tx.lease_now))
    known = batch.c.counted_at <= now  # else there is no last commit, or the lease clock began anew
    gap = case((known, tx.lease_now - batch.c.counted_at), else_=0.0)
    fade = FADE_SECONDS / (FADE_SECONDS + gap)
    lines = case((known, completed + failed), else_=0)
    prompt, completion = (case((known, tokens), else_=0) for tokens in (usage.input_tokens, usage.output_tokens))
    counted = (
        update(batch)
        .where(batch.c.id == batch_id)
        .values(
            completed=batch.c.completed + completed,
            failed=batch.c.failed + failed,
            open_slices=batch.c.open_slices - closed_slices,
            seq=batch.c.seq + 1,
            input_tokens=batch.c.input_tokens + usage.input_tokens,
            cached_tokens=batch.c.cached_tokens + usage.cached_tokens,
            output_tokens=batch.c.output_tokens + usage.output_tokens,
            reasoning_tokens=batch.c.reasoning_tokens + usage.reasoning_tokens,
            recent_lines=(batch.c.recent_lines + lines) * fade,
            retries=batch.c.retries + retries,
            recent_tokens=(batch.c.recent_tokens + prompt + completion) * fade,
            recent_prompt=(batch.c.recent_prompt + prompt) * fade,
            recent_completion=(batch.c.recent_completion + completion) * fade,
            recent_seconds=(batch.c.recent_seconds + gap) * fade,
            counted_at=now,
        )
        .returning(batch.c.seq, batch.c.open_slices, batch.c.status, batch.c.model, batch.c.key_id)
    )
    row = tx.connection.execute(counted).one()
    return Progress(
        seq=row.seq,
        open_slices=row.open_slices,
        status=Status(row.status),
        model=row.model,
        key_id=row.key_id,
    )
