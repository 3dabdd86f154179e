"""Says of each batch that is not final, in one sentence, why it does not move on; nothing while it does."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from batchmill.backends.router import Router
from batchmill.blobs.space import Room
from batchmill.clock import Clock
from batchmill.engine.attempt import stuck
from batchmill.spec.queue import in_line
from batchmill.spec.states import Status
from batchmill.spec.steer import paused
from batchmill.store.batch import set_waiting
from batchmill.store.database import Database, Transaction
from batchmill.store.model import BackendState, list_backends, list_models
from batchmill.store.standing import Standing, list_standings

_LOOK_SECONDS = 5.0
_MOST = 256  # batches told at once: the oldest
_STUCK = "stuck"
_QUEUED = "queued behind "
_NO_MODEL = "validation waits: no backend has ever answered"
_DOING = {
    Status.VALIDATING: "validating",
    Status.IN_PROGRESS: "running",
    Status.FINALIZING: "finalizing",
    Status.CANCELLING: "finalizing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a batch's sentence depends on, beside its row.

    `ahead` counts the batches that come before it in the same status; `short` is why there is no room, `outage` why
    no backend would take its lines; `moved`: its counts have changed since the last look.
    """

    ahead: int = 0
    moved: bool = False
    short: str | None = None
    outage: str | None = None
    any_model: bool = True


def why(standing: Standing, circumstances: Circumstances) -> str | None:
    """Return the sentence of a batch, None if it moves on; what a failed attempt said stays until the next one."""
    now, running = circumstances, standing.status is Status.IN_PROGRESS
    if standing.stuck and not (standing.waiting or "").startswith(_STUCK):
        return stuck(_DOING[standing.status], "its worker died")
    if standing.stuck or standing.put_off:
        return standing.waiting
    if standing.paused:
        return paused(standing.expires_at)
    if now.moved or (standing.held and not (running and (now.outage or now.short))):
        return None
    reasons = (
        _NO_MODEL if standing.status is Status.VALIDATING and not now.any_model else None,
        now.outage if running else None,
        now.short,
        f"{_QUEUED}{now.ahead} batch{'es' * (now.ahead > 1)}" if now.ahead else None,
    )
    return next((reason for reason in reasons if reason), None)


def outage_of(
    model: str, serving: Sequence[str], states: Mapping[str, BackendState], *, heard: bool = True
) -> str | None:
    """Return why nobody takes lines for this model; None if a backend that serves it is well, or not yet heard of.

    A backend that has never answered may serve anything, so where nobody is known to serve the model, all that are
    unwell are named.
    """
    if any(name not in states or states[name].well for name in serving):
        return None
    unwell = [states[name] for name in serving] or [state for state in states.values() if not state.well]
    if not unwell:  # a process that has just begun has heard nobody yet
        return f"no backend serves {model}" if heard else None
    told = "; ".join(f"{state.name}: {state.reason} (since {_moment(state.since)})" for state in unwell)
    return f"no backend that serves {model} is well: {told}"


class Waiting:
    """Keeps the sentences as rows, and logs each that says something new."""

    def __init__(self, *, database: Database, room: Room, router: Router, clock: Clock) -> None:
        self._database = database
        self._room = room
        self._router = router
        self._clock = clock
        self._look_at = clock.boot()
        self._seqs: dict[str, int] = {}
        self._log = structlog.get_logger("waiting")

    async def tell(self) -> None:
        """Look at the oldest batches, if it is time to."""
        if self._clock.boot() < self._look_at:
            return
        self._look_at = self._clock.boot() + _LOOK_SECONDS
        short = await asyncio.to_thread(self._room.short)
        standings, said = await self._database.read(lambda tx: self._look(tx, short))
        self._seqs = {standing.batch_id: standing.seq for standing in standings}
        changed = [
            (standing, words) for standing, words in zip(standings, said, strict=True) if words != standing.waiting
        ]
        if changed:
            for standing, words in await self._database.write(lambda tx: self._keep(tx, changed)):
                self._log.info("waits" if words else "goes on", batch=standing.batch_id, waiting=words)

    def _look(self, tx: Transaction, short: str | None) -> tuple[Sequence[Standing], list[str | None]]:
        standings = list_standings(tx, limit=_MOST)
        states = {state.name: state for state in list_backends(tx)}
        any_model = bool(list_models(tx))
        ahead = dict(_queue(standings))
        return standings, [
            why(
                standing,
                Circumstances(
                    ahead=ahead.get(standing.batch_id, 0),
                    moved=self._seqs.get(standing.batch_id, standing.seq) != standing.seq,
                    short=short,
                    outage=self._outage(standing, states),
                    any_model=any_model,
                ),
            )
            for standing in standings
        ]

    def _outage(self, standing: Standing, states: Mapping[str, BackendState]) -> str | None:
        if standing.model is None:
            return None
        serving = [backend.name for backend in self._router.serving(standing.model)]
        return outage_of(standing.model, serving, states, heard=bool(self._router.models()))

    def _keep(
        self, tx: Transaction, changed: Sequence[tuple[Standing, str | None]]
    ) -> Sequence[tuple[Standing, str | None]]:
        """Keep the sentences; return those that are news, which a queue that has become shorter is not."""
        now = int(self._clock.now())
        told = [pair for pair in changed if set_waiting(tx, batch_id=pair[0].batch_id, waiting=pair[1], now=now)]
        return [
            pair for pair in told if not all((text or "").startswith(_QUEUED) for text in (pair[1], pair[0].waiting))
        ]


def _queue(standings: Sequence[Standing]) -> Iterator[tuple[str, int]]:
    """Yield each batch with how many of its status come before it, in the order in which they are taken."""
    for status in _DOING:
        line = [s for s in standings if s.status is status and not (s.stuck or s.put_off)]
        if status is Status.IN_PROGRESS:
            line = [s for s in line if not s.paused]
        yield from ((s.batch_id, ahead) for ahead, s in enumerate(in_line(status, line)))


def _moment(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
