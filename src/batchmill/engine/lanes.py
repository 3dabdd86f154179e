"""The Backends of one worker, each with its pace: which of them can take a line for a model now. They come and go."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from batchmill.backends.backend import Backend
from batchmill.backends.router import Router
from batchmill.schedule.pace import Pace
from batchmill.telemetry import Metrics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lane:
    """A Backend and how much it gets; a lane is equal to itself alone."""

    backend: Backend
    pace: Pace


STRANDED_SECONDS = 60.0  # a model that no lane could take lines for so long may be served by other workers' lanes


class Lanes:
    """All lanes; `router` knows what each of them serves. One that is leaving gets no lines, but may have some out.

    `shared`: other workers have lanes, too, and may serve what these cannot.
    """

    def __init__(self, *, lanes: Iterable[Lane], router: Router, shared: bool = False) -> None:
        self._shared = shared
        self._lanes = list(lanes)
        self._turns = deque(self._lanes)
        self._leaving: list[Lane] = []
        self._router = router
        self._shut: dict[str, float] = {}  # models whose lines are in hand, and since when no lane takes them

    def __iter__(self) -> Iterator[Lane]:
        """Yield every lane, those that are leaving last."""
        return iter([*self._lanes, *self._leaving])

    @property
    def leaving(self) -> Collection[Lane]:
        """Those that get no more lines."""
        return tuple(self._leaving)

    def in_turns(self) -> Collection[Lane]:
        """Return those that get lines, each time beginning with another."""
        self._turns.rotate(-1)
        return self._turns

    def add(self, lane: Lane) -> None:
        """Let a lane get lines, once it is known what it serves; one that was leaving stays."""
        if lane in self._leaving:
            self._leaving.remove(lane)
        self._lanes.append(lane)
        self._turns.append(lane)
        self._router.add(lane.backend)

    def drain(self, lane: Lane) -> None:
        """Let a lane get no more lines."""
        self._lanes.remove(lane)
        self._turns.remove(lane)
        self._leaving.append(lane)

    def remove(self, lane: Lane) -> None:
        """Forget a lane that is leaving and has nothing out."""
        self._leaving.remove(lane)
        self._router.forget(lane.backend)

    def tell(self, metrics: Metrics) -> None:
        """Show how much is in flight at each lane, and how much may be."""
        for lane in self:
            metrics.in_flight.labels(lane.backend.name).set(lane.pace.in_flight)
            metrics.window.labels(lane.backend.name).set(lane.pace.window)

    def served_by(self, lane: Lane) -> frozenset[str]:
        """Return the models that a lane serves."""
        return self._router.served_by(lane.backend)

    def open_models(self) -> frozenset[str]:
        """Return the models that some lane serves and, as far as its circuit goes, would take lines for."""
        return frozenset[str]().union(*(self.served_by(lane) for lane in self._well()))

    def stranded(self, models: Iterable[str], now: float) -> frozenset[str]:
        """Return those of these models, whose lines are in hand, that no lane took lines for in STRANDED_SECONDS."""
        takers = self.open_models()
        shut = (model for model in models if self._shared and model not in takers)
        self._shut = {model: self._shut.get(model, now) for model in shut}
        return frozenset(model for model, since in self._shut.items() if now - since >= STRANDED_SECONDS)

    def hungry_models(self, pending: Callable[[Collection[str]], int]) -> frozenset[str]:
        """Return the models of the lanes that have less than a window in hand: `pending` counts lines for models.

        What is in hand for a model that hangs feeds no other.
        """
        hungry = (lane for lane in self._well() if pending(self.served_by(lane)) < lane.pace.window)
        return frozenset[str]().union(*map(self.served_by, hungry))

    def window(self, models: Collection[str]) -> int:
        """Return the most requests in flight at all lanes together that would take lines for one of these models."""
        return sum(lane.pace.window for lane in self._well() if not self.served_by(lane).isdisjoint(models))

    def most(self, models: Collection[str]) -> int:
        """Return how many lines for one of these models may ever have been in flight together."""
        return sum(lane.pace.most for lane in self if not self.served_by(lane).isdisjoint(models))

    def opens_at(self, now: float) -> float | None:
        """Return when some lane's prompts may go on, where nothing else holds it up; None if none waits for that."""
        times = (lane.pace.opens_at(now) for lane in self._lanes)
        return min((time for time in times if time is not None), default=None)

    def free_slots(self, model: str) -> int:
        """Return how many lines for this model could go now."""
        paces = (lane.pace for lane in self._well() if model in self.served_by(lane))
        return sum(max(0, pace.window - pace.in_flight) for pace in paces)

    def free_lane(self, model: str, now: float) -> Lane | None:
        """Return a lane that may send a line for this model at `now` (boot clock)."""
        serving = (lane for lane in self._lanes if model in self.served_by(lane))
        return next((lane for lane in serving if lane.pace.may_send(now)), None)

    def _well(self) -> Iterator[Lane]:
        return (lane for lane in self._lanes if not lane.pace.is_open)
