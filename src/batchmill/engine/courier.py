"""Takes the events of batches to the webhooks that want them, again and again until they arrive or the time is over."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from standardwebhooks import Webhook as Signer

from batchmill.backends.hook import Hook
from batchmill.blobs.space import is_full
from batchmill.clock import Clock
from batchmill.spec.webhooks import DeliveryStatus, verdict
from batchmill.store.database import Database
from batchmill.store.webhook import (
    Busy,
    Delivery,
    Webhook,
    claim_deliveries,
    forget_deliveries,
    has_due,
    save_outcome,
)
from batchmill.telemetry import Metrics

_MOST = 64  # on their way at a time
_OF_ORGANISATION = 16  # about; a receiver that is slow, or many of one owner, holds up nobody else
_OF_WEBHOOK = 4  # about
_LEASE_SECONDS = 60.0  # of one try, which may take a quarter of that
_PATIENCE_SECONDS = 1.0  # a step waits so long for the slowest
_KEPT_SECONDS = 30 * 86_400  # the log
_FORGET_SECONDS = 600.0  # how often it is looked through


class Courier:
    """Any worker takes what is due; each try is one claim, and only the last one may write what came of it."""

    def __init__(self, *, database: Database, hook: Hook, clock: Clock, metrics: Metrics) -> None:
        self._database = database
        self._hook = hook
        self._clock = clock
        self._metrics = metrics
        self._open: dict[asyncio.Task[None], Webhook] = {}
        self._forget_at = clock.boot() + _FORGET_SECONDS
        self._log = structlog.get_logger("courier")

    async def step(self) -> bool:
        """Start what is due, and wait a little for what is open; say whether any is."""
        try:
            await self._forget()
            await self._start()
            if self._open:
                await asyncio.wait(self._open, timeout=_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in self._open if task.done()]:
                del self._open[task]
                await task
        except asyncio.CancelledError:
            for task in self._open:
                task.cancel()
            raise
        except OSError as fault:
            if not is_full(fault):
                raise
            return False  # a lease ends by itself, and what was sent is sent again
        return bool(self._open)

    async def _start(self) -> None:
        """Claim few at a time: what each claim finds counts in the next one."""
        while (room := _MOST - len(self._open)) > 0:
            claimed = await self._claim(limit=min(room, _OF_WEBHOOK), busy=self._busy())
            if not claimed:
                return
            for due, webhook in claimed:
                self._open[asyncio.create_task(self._deliver(due, webhook))] = webhook

    async def _claim(self, *, limit: int, busy: Busy) -> Sequence[tuple[Delivery, Webhook]]:
        now = int(self._clock.now())
        if not await self._database.read(lambda tx: has_due(tx, now=now, busy=busy)):
            return ()
        return await self._database.write(
            lambda tx: claim_deliveries(tx, now=now, limit=limit, lease=_LEASE_SECONDS, busy=busy)
        )

    def _busy(self) -> Busy:
        webhooks = Counter(webhook.id for webhook in self._open.values())
        organisations = Counter(webhook.organisation_id for webhook in self._open.values())
        return Busy(
            webhooks=[name for name, count in webhooks.items() if count >= _OF_WEBHOOK],
            organisations=[name for name, count in organisations.items() if count >= _OF_ORGANISATION],
        )

    async def _deliver(self, due: Delivery, webhook: Webhook) -> None:
        posted = await self._hook.post(webhook.url, body=due.body, headers=self._headers(due, webhook))
        judged = verdict(posted, attempts=due.attempts)
        now = int(self._clock.now())
        kept = await self._database.write(lambda tx: save_outcome(tx, tried=due, posted=posted, judged=judged, now=now))
        outcome = "retried" if judged.status is DeliveryStatus.PENDING else judged.status.value
        self._metrics.deliveries.labels(outcome).inc()
        log = self._log.info if judged.status is DeliveryStatus.DELIVERED else self._log.warning
        log("webhook", delivery=due.id, webhook=webhook.id, status=posted.status, outcome=outcome, kept=kept)

    def _headers(self, due: Delivery, webhook: Webhook) -> dict[str, str]:
        moment = datetime.fromtimestamp(int(self._clock.now()), UTC)
        return {
            "content-type": "application/json",
            "user-agent": "batchmill",
            "webhook-id": due.event_id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": Signer(webhook.secret).sign(due.event_id, moment, due.body.decode()),
        }

    async def _forget(self) -> None:
        if self._clock.boot() >= self._forget_at:
            self._forget_at = self._clock.boot() + _FORGET_SECONDS
            before = int(self._clock.now()) - _KEPT_SECONDS
            await self._database.write(lambda tx: forget_deliveries(tx, created_before=before))
