"""Asks the backends what they serve and whether they are well, and keeps what it learns as rows."""

import asyncio
from collections.abc import Iterable, Sequence

import structlog

from batchmill.backends.backend import Unreachable
from batchmill.backends.router import Router
from batchmill.blobs.space import is_full
from batchmill.clock import Clock
from batchmill.engine.lanes import Lane
from batchmill.engine.loop import Bell
from batchmill.store.database import Database, Transaction
from batchmill.store.lane import forget_backends, say_health
from batchmill.store.model import add_models, has_backend, keep_models
from batchmill.telemetry import Metrics

_ASK_SECONDS = 30.0  # how often a well backend is asked for its models
_ASK_AGAIN_SECONDS = 2.0  # and one that did not answer
_PATIENCE_SECONDS = 1.0  # for the answers of one step; who needs longer is heard in a later one


class Scout:
    """The half-open probe of unwell backends, and the discovery of models; `lanes` may come and go."""

    def __init__(
        self,
        *,
        database: Database,
        lanes: Iterable[Lane],
        worker_id: str,
        router: Router,
        clock: Clock,
        learned: Sequence[Bell],
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._worker_id = worker_id
        self._router = router
        self._clock = clock
        self._learned = learned
        self._metrics = metrics
        self._ask_at: dict[Lane, float] = {}
        self._asking: dict[Lane, asyncio.Task[None]] = {}
        self._unreachable: dict[Lane, str] = {}  # what the last question brought, where it brought nothing
        self._saved: dict[Lane, str | None] = {}  # why it is unwell, as the rows have it; None for well
        self._full = False
        self._log = structlog.get_logger("scout")

    async def step(self) -> bool:
        """Ask every backend that is due, and keep how all of them are; False, since the next question has its time.

        One that takes its time to answer holds nobody up: the others are asked and come back meanwhile.
        """
        now = self._clock.boot()
        self._forget_gone()
        for lane in self._lanes:
            if lane not in self._asking and (lane.pace.probe_due(now) or now >= self._ask_at.get(lane, float("-inf"))):
                self._asking[lane] = asyncio.create_task(self._ask(lane))
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=_PATIENCE_SECONDS)
        for lane, asking in list(self._asking.items()):
            if asking.done():
                del self._asking[lane]
                await asking
        for lane in self._lanes:
            if lane in self._saved and self._reason(lane) != self._saved[lane]:
                await self._save(lane, ())
        return False

    def _forget_gone(self) -> None:
        """Forget the lanes that are no more: what was said of one is not said again when it comes back."""
        here = set(self._lanes)
        for known in (self._ask_at, self._unreachable, self._saved):
            for lane in known.keys() - here:
                del known[lane]

    async def _ask(self, lane: Lane) -> None:
        models: tuple[str, ...] = ()
        try:
            models = await lane.backend.models()
        except Unreachable as unreachable:
            # The row has the name.
            self._unreachable[lane] = str(unreachable).removeprefix(lane.backend.name).lstrip(": ")
        else:
            self._unreachable.pop(lane, None)  # only now: while it is asked it is as it was
        if lane not in set(self._lanes):  # it has gone meanwhile
            return
        reached = lane not in self._unreachable
        lane.pace.probed(reached, self._clock.boot())
        self._ask_at[lane] = self._clock.boot() + (_ASK_SECONDS if reached else _ASK_AGAIN_SECONDS)
        if reached:
            self._router.learn(lane.backend, models)
        await self._save(lane, models)
        for bell in self._learned:
            bell.ring()

    def _reason(self, lane: Lane) -> str | None:
        """Return why a backend is unwell: it does not tell its models, or its circuit is not closed."""
        circuit = None if lane.pace.unwell_since is None else lane.pace.unwell_why
        return self._unreachable.get(lane) or circuit

    async def _save(self, lane: Lane, models: tuple[str, ...]) -> None:
        """Keep how a backend is to this worker and what it serves, if that says something new."""
        now = int(self._clock.now())
        name, reason, is_first = lane.backend.name, self._reason(lane), not self._saved
        same = lane in self._saved and self._saved[lane] == reason
        self._metrics.backend_well.labels(name).set(reason is None)

        def statements(tx: Transaction) -> tuple[str, ...]:
            if not same or not has_backend(tx, name=name):  # another worker's clearing may have met our first word
                say_health(tx, worker_id=self._worker_id, name=name, reason=reason, now=now)
            if is_first:
                names = [lane.backend.name for lane in self._lanes]
                forget_backends(tx, worker_id=self._worker_id, names=names)
            if models:
                keep_models(tx, name=name, models=models)
            return add_models(tx, names=models, now=now)

        try:
            new = await self._database.write(statements) if not same or models else ()
        except OSError as fault:
            if not is_full(fault):
                raise
            if not self._full:
                self._log.warning("not kept: the disk is full", backend=name, reason=reason)
            self._full = True
            return  # it is asked again anyway
        self._full = False
        self._saved[lane] = reason
        if not same:
            log = self._log.info if reason is None else self._log.warning
            log("backend unwell" if reason else "backend well", backend=name, reason=reason)
        if new:
            self._log.info("models learned", backend=name, models=list(new))
