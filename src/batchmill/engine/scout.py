"""Asks the backends what they serve and whether they are well, and keeps what it learns as rows."""

import asyncio
from collections.abc import Sequence

import structlog

from batchmill.backends.backend import Unreachable
from batchmill.backends.router import Router
from batchmill.blobs.space import is_full
from batchmill.clock import Clock
from batchmill.engine.lanes import Lane
from batchmill.engine.loop import Bell
from batchmill.store.database import Database, Transaction
from batchmill.store.model import BackendState, add_models, keep_backends, save_backend
from batchmill.telemetry import Metrics

_ASK_SECONDS = 30.0  # how often a well backend is asked for its models
_ASK_AGAIN_SECONDS = 2.0  # and one that did not answer
_PATIENCE_SECONDS = 1.0  # for the answers of one step; who needs longer is heard in a later one


class Scout:
    """The half-open probe of unwell backends, and the discovery of models."""

    def __init__(
        self,
        *,
        database: Database,
        lanes: Sequence[Lane],
        router: Router,
        clock: Clock,
        learned: Sequence[Bell],
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._router = router
        self._clock = clock
        self._learned = learned
        self._metrics = metrics
        self._ask_at = {lane.backend.name: float("-inf") for lane in lanes}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._unreachable: dict[str, str] = {}  # what the last question brought, where it brought nothing
        self._saved: dict[str, BackendState] = {}
        self._full = False
        self._log = structlog.get_logger("scout")

    async def step(self) -> bool:
        """Ask every backend that is due, and keep how all of them are; False, since the next question has its time.

        One that takes its time to answer holds nobody up: the others are asked and come back meanwhile.
        """
        now = self._clock.boot()
        for lane in self._lanes:
            name = lane.backend.name
            if name not in self._asking and (lane.pace.probe_due(now) or now >= self._ask_at[name]):
                self._asking[name] = asyncio.create_task(self._ask(lane))
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=_PATIENCE_SECONDS)
        for name, asking in list(self._asking.items()):
            if asking.done():
                del self._asking[name]
                await asking
        for lane in self._lanes:
            if lane.backend.name in self._saved and self._reason(lane) != self._saved[lane.backend.name].reason:
                await self._save(lane, ())
        return False

    async def _ask(self, lane: Lane) -> None:
        name = lane.backend.name
        models: tuple[str, ...] = ()
        try:
            models = await lane.backend.models()
        except Unreachable as unreachable:
            self._unreachable[name] = str(unreachable).removeprefix(name).lstrip(": ")  # the row has the name
        else:
            self._unreachable.pop(name, None)  # only now: while it is asked it is as it was
        reached = name not in self._unreachable
        lane.pace.probed(reached, self._clock.boot())
        self._ask_at[name] = self._clock.boot() + (_ASK_SECONDS if reached else _ASK_AGAIN_SECONDS)
        if reached:
            self._router.learn(lane.backend, models)
        await self._save(lane, models)
        for bell in self._learned:
            bell.ring()

    def _reason(self, lane: Lane) -> str | None:
        """Return why a backend is unwell: it does not tell its models, or its circuit is not closed."""
        circuit = None if lane.pace.unwell_since is None else lane.pace.unwell_why
        return self._unreachable.get(lane.backend.name) or circuit

    async def _save(self, lane: Lane, models: tuple[str, ...]) -> None:
        """Keep how a backend is and what it serves, if that says something new."""
        now = int(self._clock.now())
        name, reason = lane.backend.name, self._reason(lane)
        before = self._saved.get(name)
        well, same = reason is None, before is not None and before.reason == reason
        since = before.since if before is not None and before.well == well else now
        state = BackendState(name=name, well=well, reason=reason, since=since)
        self._metrics.backend_well.labels(name).set(state.well)

        def statements(tx: Transaction) -> tuple[str, ...]:
            if not same:
                save_backend(tx, state)
            if before is None:
                keep_backends(tx, names=[lane.backend.name for lane in self._lanes])
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
        self._saved[name] = state
        if not same:
            log = self._log.info if state.well else self._log.warning
            log("backend well" if state.well else "backend unwell", backend=name, reason=reason)
        if new:
            self._log.info("models learned", backend=name, models=list(new))
