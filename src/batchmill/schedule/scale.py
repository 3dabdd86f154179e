"""How many workers the backlog wants: more at once, fewer only when fewer would have done for a while."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How a fleet follows its backlog: one worker for each `lines` open lines, from `least` to `most` of them.

    `patience` is for how many seconds fewer must have done before some are let go.

    Raises:
        ValueError: The numbers make no sense together.
    """

    least: int
    most: int
    lines: int
    patience: float

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(f"from {self.least} to {self.most} workers: the first must not be above the second")
        if self.lines < 1:
            raise ValueError(f"{self.lines} lines for each worker: at least 1 is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left to do: `lines` without a result, and `batches` that are not final, in whatever state."""

    lines: int
    batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lull:
    """Since when (seconds of any steady clock) fewer workers would have done, and the most that were needed since."""

    since: float
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How many workers there should be, and the lull to hand in with the next look."""

    workers: int
    lull: Lull | None = None


def wanted_workers(scale: Scale, *, left: Left | None, running: int, lull: Lull | None, now: float) -> Wanted:
    """Return how many workers there should be, of which `running` are there and are not ending.

    `left` is None where the Store could not be asked: then nothing changes but what the bounds say. A batch that is
    not final needs one worker even where it has no open line: it is validated, closed or expired by one.
    """
    within = min(max(running, scale.least), scale.most)
    if left is None:
        return Wanted(workers=within, lull=lull)
    needed = max(-(-left.lines // scale.lines), 1 if left.batches else 0)
    needed = min(max(needed, scale.least), scale.most)
    if needed >= within:
        return Wanted(workers=needed)
    lull = Lull(since=now, peak=needed) if lull is None else Lull(since=lull.since, peak=max(lull.peak, needed))
    if now - lull.since < scale.patience:
        return Wanted(workers=within, lull=lull)
    return Wanted(workers=min(lull.peak, within))
