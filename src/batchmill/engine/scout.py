"""Asks the backends what they serve and whether they are well, and keeps what it learns as rows."""

import asyncio
from collections.abc import Sequence

import structlog

from batchmill.backends.backend import Unreachable
from batchmill.backends.router import Router
from batchmill.blobs.space import is_full
from batchmill.clock import Clock
from batchmill.engine.loop import Bell
from batchmill.engine.sender import Lane
from batchmill.store.database import Database, Transaction
from batchmill.store.model import BackendState, add_models, keep_backends, save_backend

_ASK_SECONDS = 30.0  # how often a well backend is asked for its models
_ASK_AGAIN_SECONDS = 2.0  # and one that did not answer


class Scout:
    """The half-open probe of unwell backends, and the discovery of models."""

    def __init__(
        self, *, database: Database, lanes: Sequence[Lane], router: Router, clock: Clock, learned: Sequence[Bell]
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._router = router
        self._clock = clock
        self._learned = learned
        self._ask_at = {lane.backend.name: float("-inf") for lane in lanes}
        self._saved: dict[str, BackendState] = {}
        self._full = False
        self._log = structlog.get_logger("scout")

    async def step(self) -> bool:
        """Ask every backend that is due; False, since the next question has its time."""
        now = self._clock.boot()
        due = [lane for lane in self._lanes if lane.pace.probe_due(now) or now >= self._ask_at[lane.backend.name]]
        if due:
            await asyncio.gather(*(self._ask(lane) for lane in due))
        return False

    async def _ask(self, lane: Lane) -> None:
        name = lane.backend.name
        models: tuple[str, ...] = ()
        reason: str | None = None
        try:
            models = await lane.backend.models()
        except Unreachable as unreachable:
            reason = str(unreachable)
        lane.pace.probed(reason is None, self._clock.boot())
        wait = _ASK_SECONDS if reason is None else _ASK_AGAIN_SECONDS
        self._ask_at[name] = self._clock.boot() + wait
        if reason is None:
            self._router.learn(lane.backend, models)
        await self._save(name, models, reason)
        for bell in self._learned:
            bell.ring()

    async def _save(self, name: str, models: tuple[str, ...], reason: str | None) -> None:
        """Keep the answer if it says something new."""
        now = int(self._clock.now())
        before = self._saved.get(name)
        same = before is not None and before.reason == reason
        state = (
            before
            if before is not None and same
            else BackendState(name=name, well=reason is None, reason=reason, since=now)
        )

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
