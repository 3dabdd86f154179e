"""What alerts are about: deadlines at risk, batches that wait, workers that are away."""

from dataclasses import dataclass

from sqlalchemy import case, func, select

from batchmill.schedule.forecast import Recent, forecast
from batchmill.spec.states import Status
from batchmill.store.batch import is_live
from batchmill.store.database import Transaction
from batchmill.store.tables import batch, worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """What an operator is woken for.

    `at_risk` counts running batches that will miss their deadline if all stays as it is; `margin` is the least number
    of seconds between a forecast and its deadline, negative for a miss, None while nothing has a forecast; `waiting`
    counts batches that say why they do not move on and are not paused, `oldest_wait` seconds being the longest of them.
    `away` counts workers whose lease lapsed and who did not end in good order.
    """

    at_risk: int
    margin: int | None
    waiting: int
    oldest_wait: int
    paused: int
    workers: int
    away: int


def read_alerts(tx: Transaction, *, now: float) -> Alerts:
    """Return how it looks at `now` (Unix seconds)."""
    margins = _margins(tx, now)
    stands_still = batch.c.waiting.is_not(None) & batch.c.paused_at.is_(None)
    counts = select(
        func.count(case((stands_still, 1))),
        func.min(case((stands_still, batch.c.waiting_since))),
        func.count(batch.c.paused_at),
    ).where(is_live())
    waiting, since, paused = tx.connection.execute(counts).one()
    holds = worker.c.lease_until > tx.lease_now
    workers, away = tx.connection.execute(select(func.count(case((holds, 1))), func.count(case((~holds, 1))))).one()
    return Alerts(
        at_risk=sum(margin < 0 for margin in margins),
        margin=min(margins, default=None),
        waiting=waiting,
        oldest_wait=0 if since is None else max(0, int(now) - since),
        paused=paused,
        workers=workers,
        away=away,
    )


def _margins(tx: Transaction, now: float) -> list[int]:
    """Return the seconds between forecast and deadline of each batch that has a forecast, by the rule of the API."""
    age = case((batch.c.counted_at <= tx.lease_now, tx.lease_now - batch.c.counted_at)).label("age")
    left = (batch.c.total - batch.c.completed - batch.c.failed).label("left_over")
    recent = (batch.c.recent_lines, batch.c.recent_tokens, batch.c.recent_seconds)
    goes_on = (batch.c.waiting.is_(None), batch.c.paused_at.is_(None), batch.c.recent_seconds > 0)
    query = select(*recent, age, left, batch.c.expires_at).where(batch.c.status == Status.IN_PROGRESS.value, *goes_on)
    told = []
    for row in tx.connection.execute(query):
        known = Recent(lines=row.recent_lines, tokens=row.recent_tokens, seconds=row.recent_seconds, age=row.age)
        eta = forecast(known, left=row.left_over, waits=False, now=now, expires_at=row.expires_at).eta
        if eta is not None:
            told.append(row.expires_at - eta)
    return told
