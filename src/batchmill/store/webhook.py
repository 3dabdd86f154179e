"""Webhooks, and the deliveries of their events: a log, and what is still to be sent.

An event is written by the transaction that moves its batch to the end: neither can be without the other.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Row, and_, delete, exists, func, insert, or_, select, union_all, update

from batchmill.spec.ids import mint_id
from batchmill.spec.states import FINAL, Status
from batchmill.spec.webhooks import EVENTS, DeliveryStatus, Posted, Verdict, event_body
from batchmill.store.database import Transaction
from batchmill.store.tables import batch, delivery, webhook


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where an organisation wants events sent: those of all its batches, or of one. `secret` signs, and is no key."""

    id: str
    organisation_id: str
    batch_id: str | None
    url: str
    events: tuple[str, ...]
    secret: str
    created_at: int

    def wire(self, *, with_secret: bool = False) -> dict[str, object]:
        """Return it as the API shows it; the secret is shown once."""
        shown: dict[str, object] = {
            "id": self.id,
            "object": "webhook",
            "url": self.url,
            "events": list(self.events),
            "batch_id": self.batch_id,
            "created_at": self.created_at,
        }
        return shown | ({"secret": self.secret} if with_secret else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one webhook; times in Unix seconds, `next_at` None once nothing more is tried."""

    id: str
    webhook_id: str
    event_id: str
    event: str
    batch_id: str
    body: bytes
    attempts: int
    status: DeliveryStatus
    last_status_code: int | None
    last_error: str | None
    next_at: int | None
    created_at: int
    delivered_at: int | None
    lease_until: float | None  # of the try that was claimed: its fence

    def wire(self) -> dict[str, object]:
        """Return it as the API shows it."""
        return {
            "id": self.id,
            "object": "webhook.delivery",
            "event": self.event,
            "event_id": self.event_id,
            "batch_id": self.batch_id,
            "attempts": self.attempts,
            "status": self.status.value,
            "last_status_code": self.last_status_code,
            "last_error": self.last_error,
            "next_at": self.next_at,
            "created_at": self.created_at,
            "delivered_at": self.delivered_at,
        }


def insert_webhook(tx: Transaction, added: Webhook) -> None:
    """Add a webhook."""
    tx.connection.execute(
        insert(webhook).values(
            id=added.id,
            organisation_id=added.organisation_id,
            batch_id=added.batch_id,
            url=added.url,
            events=" ".join(added.events),
            secret=added.secret,
            created_at=added.created_at,
        )
    )


def count_webhooks(tx: Transaction, *, organisation_id: str, batch_id: str | None) -> int:
    """Return how many webhooks there are for all batches of an organisation, or for this one."""
    mine = webhook.c.batch_id.is_(None) if batch_id is None else webhook.c.batch_id == batch_id
    query = select(func.count()).where(webhook.c.organisation_id == organisation_id, mine)
    return int(tx.connection.execute(query).scalar_one())


def list_webhooks(tx: Transaction, *, organisation_id: str, after: str | None, limit: int) -> Sequence[Webhook]:
    """Return at most `limit` webhooks, newest first, beyond the id `after`."""
    query = select(webhook).where(webhook.c.organisation_id == organisation_id).order_by(webhook.c.id.desc())
    if after is not None:
        query = query.where(webhook.c.id < after)
    return [_webhook(row) for row in tx.connection.execute(query.limit(limit))]


def find_webhook(tx: Transaction, *, organisation_id: str, webhook_id: str) -> Webhook | None:
    """Return a webhook of the organisation."""
    mine = select(webhook).where(webhook.c.organisation_id == organisation_id, webhook.c.id == webhook_id)
    row = tx.connection.execute(mine).first()
    return None if row is None else _webhook(row)


def delete_webhook(tx: Transaction, *, organisation_id: str, webhook_id: str) -> bool:
    """Remove a webhook with its log; False if there is none. What is being sent at this moment still arrives."""
    mine = delete(webhook).where(webhook.c.organisation_id == organisation_id, webhook.c.id == webhook_id)
    gone = tx.connection.execute(mine).rowcount == 1
    if gone:
        tx.connection.execute(delete(delivery).where(delivery.c.webhook_id == webhook_id))
    return gone


def lock_status(tx: Transaction, *, organisation_id: str, batch_id: str) -> Status | None:
    """Return the status of a batch, which no one moves until this transaction ends; None if it is not there.

    Whoever adds a webhook to a batch must know whether the batch's end will see it.
    """
    mine = select(batch.c.status).where(batch.c.organisation_id == organisation_id, batch.c.id == batch_id)
    status = tx.connection.execute(mine.with_for_update()).scalar()
    return None if status is None else Status(status)


def announce(tx: Transaction, *, batch_id: str, status: Status, now: int) -> None:
    """Write a batch's end down for every webhook that wants to hear of it."""
    owner = select(batch.c.organisation_id).where(batch.c.id == batch_id).scalar_subquery()
    # Two look-ups in the index: with an OR, SQLite reads every batch's own webhooks at the end of each batch.
    wanted = union_all(
        select(webhook).where(webhook.c.organisation_id == owner, webhook.c.batch_id.is_(None)),
        select(webhook).where(webhook.c.organisation_id == owner, webhook.c.batch_id == batch_id),
    )
    hearing = [each for each in map(_webhook, tx.connection.execute(wanted)) if EVENTS[status] in each.events]
    insert_deliveries(tx, webhooks=hearing, batch_id=batch_id, status=status, now=now)


def insert_deliveries(tx: Transaction, *, webhooks: Sequence[Webhook], batch_id: str, status: Status, now: int) -> None:
    """Add one event for these webhooks, to be sent at once."""
    event, event_id = EVENTS[status], mint_id("evt", now)
    body = event_body(event_id=event_id, event=event, batch_id=batch_id, created_at=now)
    rows = [
        {
            "id": mint_id("whd", now),
            "webhook_id": each.id,
            "event_id": event_id,
            "event": event,
            "batch_id": batch_id,
            "body": body,
            "attempts": 0,
            "status": DeliveryStatus.PENDING.value,
            "next_at": now,
            "created_at": now,
        }
        for each in webhooks
    ]
    if rows:
        tx.ring()
        tx.connection.execute(insert(delivery), rows)


def list_deliveries(tx: Transaction, *, webhook_id: str, after: str | None, limit: int) -> Sequence[Delivery]:
    """Return at most `limit` deliveries of a webhook, newest first, beyond the id `after`."""
    query = select(delivery).where(delivery.c.webhook_id == webhook_id).order_by(delivery.c.id.desc()).limit(limit)
    if after is not None:
        query = query.where(delivery.c.id < after)
    return [_delivery(row) for row in tx.connection.execute(query)]


def replay_delivery(tx: Transaction, *, webhook_id: str, delivery_id: str, now: int) -> Delivery | None:
    """Let a delivery be tried again from the start, the same event under the same id; None if there is none."""
    tx.ring()
    mine = update(delivery).where(delivery.c.webhook_id == webhook_id, delivery.c.id == delivery_id)
    again = {"attempts": 0, "next_at": now, "delivered_at": None, "lease_until": None}
    row = tx.connection.execute(mine.values(status=DeliveryStatus.PENDING.value, **again).returning(delivery)).first()
    return None if row is None else _delivery(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Webhooks, and organisations, that have enough on its way already: what is due for them waits."""

    webhooks: Collection[str] = ()
    organisations: Collection[str] = ()


def has_due(tx: Transaction, *, now: int, busy: Busy) -> bool:
    """Say whether `claim_deliveries` would find one."""
    return tx.connection.execute(select(delivery.c.id).where(_due(tx, now, busy)).limit(1)).first() is not None


def claim_deliveries(
    tx: Transaction, *, now: int, limit: int, lease: float, busy: Busy
) -> Sequence[tuple[Delivery, Webhook]]:
    """Take deliveries that are due, each with its webhook, for one try; a lapsed lease is nobody's.

    The lease is the fence: see `save_outcome`.
    """
    due = select(delivery.c.id).where(_due(tx, now, busy)).order_by(delivery.c.next_at).limit(limit)
    found = tx.connection.execute(due.with_for_update(skip_locked=True)).scalars().all()
    taken = update(delivery).where(delivery.c.id.in_(found), _due(tx, now, busy)).returning(delivery)
    claim = {"attempts": delivery.c.attempts + 1, "lease_until": tx.lease_now + lease}
    claimed = [_delivery(row) for row in tx.connection.execute(taken.values(claim))] if found else []
    wanted = select(webhook).where(webhook.c.id.in_({each.webhook_id for each in claimed}))
    webhooks = {row.id: _webhook(row) for row in tx.connection.execute(wanted)} if claimed else {}
    orphans = [each.id for each in claimed if each.webhook_id not in webhooks]  # announced while it was deleted
    if orphans:
        tx.connection.execute(delete(delivery).where(delivery.c.id.in_(orphans)))
    return [(each, webhooks[each.webhook_id]) for each in claimed if each.webhook_id in webhooks]


def save_outcome(tx: Transaction, *, tried: Delivery, posted: Posted, judged: Verdict, now: int) -> bool:
    """Keep what came of a try; False if another has begun since, or the delivery was replayed or removed."""
    # A replay begins to count anew, so the number of tries alone may be that of a later one.
    fence = (delivery.c.attempts == tried.attempts, delivery.c.lease_until == tried.lease_until)
    mine = update(delivery).where(delivery.c.id == tried.id, *fence)
    outcome = {
        "status": judged.status.value,
        "last_status_code": posted.status,
        "last_error": posted.reason,
        "next_at": None if judged.after is None else now + judged.after,
        "delivered_at": now if judged.status is DeliveryStatus.DELIVERED else None,
        "lease_until": None,
    }
    return tx.connection.execute(mine.values(outcome)).rowcount == 1


def forget_deliveries(tx: Transaction, *, created_before: int) -> None:
    """Remove what was announced before this time and is done, or nobody's; then webhooks of batches that are over."""
    done = or_(delivery.c.status != DeliveryStatus.PENDING.value, delivery.c.webhook_id.not_in(select(webhook.c.id)))
    tx.connection.execute(delete(delivery).where(delivery.c.created_at < created_before, done))
    own = webhook.c.batch_id.is_not(None) & (webhook.c.created_at < created_before)
    goes_on = exists().where(batch.c.id == webhook.c.batch_id, batch.c.status.not_in([each.value for each in FINAL]))
    told = exists().where(delivery.c.webhook_id == webhook.c.id)
    tx.connection.execute(delete(webhook).where(own, ~goes_on, ~told))


def _due(tx: Transaction, now: int, busy: Busy) -> ColumnElement[bool]:
    free = or_(delivery.c.lease_until.is_(None), delivery.c.lease_until < tx.lease_now)
    due = [delivery.c.status == DeliveryStatus.PENDING.value, delivery.c.next_at <= now, free]
    if busy.webhooks:
        due.append(delivery.c.webhook_id.not_in(busy.webhooks))
    if busy.organisations:
        mine = webhook.c.organisation_id.in_(busy.organisations)
        due.append(~exists().where(webhook.c.id == delivery.c.webhook_id, mine))
    return and_(*due)


def _webhook(row: Row[tuple[object, ...]]) -> Webhook:
    return Webhook(
        id=row.id,
        organisation_id=row.organisation_id,
        batch_id=row.batch_id,
        url=row.url,
        events=tuple(row.events.split()),
        secret=row.secret,
        created_at=row.created_at,
    )


def _delivery(row: Row[tuple[object, ...]]) -> Delivery:
    return Delivery(
        id=row.id,
        webhook_id=row.webhook_id,
        event_id=row.event_id,
        event=row.event,
        batch_id=row.batch_id,
        body=bytes(row.body),
        attempts=row.attempts,
        status=DeliveryStatus(row.status),
        last_status_code=row.last_status_code,
        last_error=row.last_error,
        next_at=row.next_at,
        created_at=row.created_at,
        delivered_at=row.delivered_at,
        lease_until=row.lease_until,
    )
