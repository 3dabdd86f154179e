"""What one who waits for a batch sees: a bar on a terminal, a plain line now and then elsewhere, always on stderr."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from batchmill.schedule.forecast import Forecast

_MOST = 100  # seconds, or minutes: more are told in the next unit
_LINE_SECONDS = 5.0  # at most one plain line in so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How a batch is at `now` (Unix seconds).

    `total` is 0 while it is not known, `waiting` says why the batch does not move on, and a forecast is there while it
    is in progress.
    """

    status: str
    now: float = 0.0
    total: int = 0
    done: int = 0
    failed: int = 0
    waiting: str | None = None
    forecast: Forecast | None = None

    @property
    def pace(self) -> str:
        """Its lines a second, and how long the rest will take, in words."""
        if self.forecast is None:
            return ""
        if self.forecast.eta is None:
            return "-- lines/s, ETA --"
        left = _span(max(0.0, self.forecast.eta - self.now))
        return f"{self.forecast.lines_per_second:,.1f} lines/s, ETA {left}"


class Display(Protocol):
    """Shows how a batch goes."""

    def show(self, moment: Moment) -> None:
        """Show how it is now."""
        ...

    def say(self, sentence: str) -> None:
        """Print a sentence that stays."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was; a second call does nothing."""
        ...


def display(*, quiet: bool) -> Display:
    """Return the display that fits this process's stderr."""
    if quiet:
        return Silence()
    return Bar() if sys.stderr.isatty() else PlainLines()


class Silence:
    """Shows nothing."""

    def show(self, moment: Moment) -> None:
        """See `Display`."""

    def say(self, sentence: str) -> None:
        """See `Display`."""

    def close(self) -> None:
        """See `Display`."""


class PlainLines:
    """A line at the first moment of each status and each reason to wait; else at most one in five seconds."""

    def __init__(self) -> None:
        self._state: tuple[str, str | None] | None = None
        self._last: str | None = None
        self._printed = float("-inf")

    def show(self, moment: Moment) -> None:
        """See `Display`."""
        now = time.monotonic()
        state = moment.status, moment.waiting
        if state == self._state and now < self._printed + _LINE_SECONDS:
            return
        words = [moment.status]
        if moment.total:
            done = f"{moment.done:,} of {moment.total:,} lines, {moment.failed:,} failed"
            words = [", ".join(filter(None, (f"{moment.status}: {done}", moment.pace)))]
        if moment.waiting is not None:
            words.append(f"waits: {moment.waiting}")
        line = "; ".join(words)
        self._state, self._printed = state, now
        if line != self._last:
            self._last = line
            self.say(line)

    def say(self, sentence: str) -> None:
        """See `Display`."""
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 - for the one who waits

    def close(self) -> None:
        """See `Display`."""


class _BarAndReason(Progress):
    """A bar, and below it the whole reason to wait, however narrow the terminal is."""

    waiting: str | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.waiting is not None:
            yield Text(f"waits: {self.waiting}", style="yellow")


class Bar:
    """A line that moves at the foot of a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = _BarAndReason(
            SpinnerColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed  {task.fields[pace]}", style="cyan", markup=False),
            console=self._console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=None, status="starting", failed=0, pace="")
        self._progress.start()

    def show(self, moment: Moment) -> None:
        """See `Display`."""
        self._progress.waiting = moment.waiting
        self._progress.update(
            self._task,
            total=moment.total or None,
            completed=moment.done,
            status=moment.status,
            failed=moment.failed,
            pace=moment.pace,
        )

    def say(self, sentence: str) -> None:
        """See `Display`."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """See `Display`."""
        self._progress.stop()


def _span(seconds: float) -> str:
    """Return a length of time as one reads it: 40 s, 12 min, 3 h 20 min."""
    if seconds < _MOST:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < _MOST else f"{minutes // 60} h {minutes % 60} min"
