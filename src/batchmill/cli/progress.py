"""What one who waits for a batch sees: a bar on a terminal, a plain line now and then elsewhere, always on stderr."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

_RATE_SECONDS = 20.0  # lines/s and ETA are of so long a time: lines end in bursts
_MOST = 100  # seconds, or minutes: more are told in the next unit
_LINE_SECONDS = 5.0  # at most one plain line in so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How a batch is now; `total` 0 while it is not known, `waiting` why it does not move on."""

    status: str
    total: int = 0
    done: int = 0
    failed: int = 0
    waiting: str | None = None


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


class Rate:
    """Lines a second over the last while, and what that means for the rest."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def words(self, moment: Moment, now: float) -> str:
        """Return both in words, after taking in how far the batch is; `now` in seconds of a steady clock."""
        if moment.total == 0:  # it has not begun: the wait until then says nothing of its pace
            return ""
        self._seen.append((now, moment.done))
        while self._seen[0][0] < now - _RATE_SECONDS:
            self._seen.popleft()
        began, before = self._seen[0]
        if moment.done == before or now <= began:
            return "-- lines/s, ETA --"
        rate = (moment.done - before) / (now - began)
        return f"{rate:,.1f} lines/s, ETA {_span((moment.total - moment.done) / rate)}"


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
        self._rate = Rate()
        self._state: tuple[str, str | None] | None = None
        self._last: str | None = None
        self._printed = float("-inf")

    def show(self, moment: Moment) -> None:
        """See `Display`."""
        now = time.monotonic()
        rate = self._rate.words(moment, now)
        state = moment.status, moment.waiting
        if state == self._state and now < self._printed + _LINE_SECONDS:
            return
        words = [moment.status]
        if moment.total:
            words = [f"{moment.status}: {moment.done:,} of {moment.total:,} lines, {moment.failed:,} failed, {rate}"]
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
        self._rate = Rate()
        self._console = Console(stderr=True)
        self._progress = _BarAndReason(
            SpinnerColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed, {task.fields[rate]}", style="cyan", markup=False),
            console=self._console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=None, status="starting", failed=0, rate="")
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
            rate=self._rate.words(moment, time.monotonic()),
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
