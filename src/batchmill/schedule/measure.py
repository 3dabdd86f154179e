"""What came of the requests sent since a moment: measured by each worker, summed up where several share a window."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple


class Measure(NamedTuple):
    """What came of the requests that one worker sent since a round began; those of several workers are judged together.

    `elapsed` seconds went by, with `area` requests in flight x seconds; `answers` came with `work`, after `seconds` in
    all. `arrived` is the work that came, also of what was sent before.
    """

    elapsed: float = 0.0
    area: float = 0.0
    answers: int = 0
    work: float = 0.0
    seconds: float = 0.0
    arrived: float = 0.0


@dataclass(slots=True)
class Meter:
    """Counts what comes of the requests sent since a moment."""

    began_at: float
    moved_at: float
    answers: int = 0
    work: float = 0.0
    seconds: float = 0.0  # that they took, together
    arrived: float = 0.0  # work, also of what was sent before
    area: float = 0.0  # requests in flight x seconds
    looks: int = 0  # at the gauges
    waiting: float = inf  # the least that waited inside the engine
    kv: float = 0.0

    def read(self, now: float) -> Measure:
        """Return what has come so far."""
        return Measure(now - self.began_at, self.area, self.answers, self.work, self.seconds, self.arrived)


def sum_up(measures: Sequence[Measure]) -> tuple[float, float]:
    """Return how many were in flight on average, and the work delivered a second: by Little's law, or as it arrived.

    While a queue builds up the former is too high, while the window fills up the latter is too low: it is the lesser.
    """
    in_flight = sum(each.area / max(each.elapsed, 1e-9) for each in measures)
    arrived = sum(each.arrived / max(each.elapsed, 1e-9) for each in measures)
    work, seconds = sum(each.work for each in measures), sum(each.seconds for each in measures)
    return in_flight, min(in_flight * work / max(seconds, 1e-9), arrived)
