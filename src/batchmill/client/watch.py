"""What one who watches a batch sees, made of progress objects alone: a picture for a terminal, a line for a log."""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from batchmill.client.progress import Group, Progress
from batchmill.client.text import money, shown

_BARS = "▁▂▃▄▅▆▇█"
_RATES = 40  # that a sparkline shows
_GROUPS = 5  # that are shown
_IDS = 3  # of a group
_REASON = 400  # characters of a reason to wait
_MESSAGE = 160  # the same, of a group's message
_LINE_SECONDS = 5.0  # at most one line of a log in so long, save where the state changed
_MOST = 100  # seconds, or minutes: more are told in the next unit
_STYLES = {"completed": "green", "failed": "red", "expired": "red", "cancelled": "yellow", "cancelling": "yellow"}


def span(seconds: float) -> str:
    """Return a length of time as one reads it: 40 s, 12 min, 3 h 20 min, 5 d 2 h."""
    seconds = max(0.0, seconds)
    if seconds < _MOST:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < _MOST:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < _MOST else f"{hours // 24} d {hours % 24} h"


def sparkline(rates: "deque[float]") -> str:
    """Return rates as a row of bars, the highest as high as a line."""
    most = max(rates, default=0.0)
    if most <= 0:
        return ""
    return "".join(_BARS[min(len(_BARS) - 1, int(rate / most * len(_BARS)))] for rate in rates)


class Picture:
    """The picture of a batch on a terminal; it remembers the rates that it was shown."""

    def __init__(self, *, zone: tzinfo | None = None) -> None:
        """Set it up; `zone` is that of the hours that are shown, the machine's own if it is None."""
        self._zone = zone
        self._rates: deque[float] = deque(maxlen=_RATES)

    def seen(self, progress: Progress) -> None:
        """Remember a progress object."""
        if progress.lines_per_second is not None:
            self._rates.append(progress.lines_per_second)

    def draw(self, progress: Progress, now: float) -> RenderableType:
        """Return the picture at `now` (Unix seconds)."""
        return Lines(*self._lines(progress, now))

    def _lines(self, progress: Progress, now: float) -> Iterator[RenderableType]:
        yield _title(progress)
        counts = progress.request_counts
        if counts.total:
            style = "red" if progress.status in {"failed", "expired"} else "cyan"
            yield Padding(ProgressBar(total=counts.total, completed=counts.done, complete_style=style), 0)
        failed = Text(f"  {counts.failed:,} failed", style="red" if counts.failed else "dim")
        yield Text(f"{counts.done:,} of {counts.total:,} lines") + failed if counts.total else Text("no line yet")
        if not progress.is_final:
            yield Text.assemble((f"{sparkline(self._rates)} ", "cyan"), _rates(progress))
            yield _deadline(progress, now, self._zone)
        if (used := _used(progress)) is not None:
            yield Text(used, style="dim")
        if progress.waiting is not None:
            since = "" if progress.waiting.since is None else f" (for {span(now - progress.waiting.since)})"
            yield Text(f"waits: {shown(progress.waiting.reason, _REASON)}{since}", style="yellow")
        for group in progress.error_groups[:_GROUPS]:
            yield Text(describe(group), style="red")
        hidden = sum(group.count for group in progress.error_groups[_GROUPS:]) + progress.errors_ungrouped
        if hidden:
            yield Text(f"{hidden:,}× of other causes", style="red")


class Log:
    """The lines of a log: at once when the state changes, else one in five seconds at most, and never one twice."""

    def __init__(self) -> None:
        self._state: tuple[object, ...] | None = None
        self._last: str | None = None
        self._told = float("-inf")

    def line(self, progress: Progress, now: float) -> str | None:
        """Return the line to be written at `now`, if one is due."""
        reason = None if progress.waiting is None else progress.waiting.reason
        state = progress.status, progress.paused_at is None, reason, len(progress.error_groups)
        if state == self._state and now < self._told + _LINE_SECONDS:
            return None
        line = plain(progress, now)
        self._state, self._told = state, now
        if line == self._last:
            return None
        self._last = line
        return line


def plain(progress: Progress, now: float) -> str:
    """Return how a batch goes as one line."""
    counts, words = progress.request_counts, [_state(progress)]
    if counts.total:
        words[0] += f": {counts.done:,} of {counts.total:,} lines, {counts.failed:,} failed"
    if not progress.is_final:
        if progress.lines_per_second is not None:
            words.append(f"{progress.lines_per_second:,.1f} lines/s")
        if progress.eta is not None:
            words.append(f"ETA {span(progress.eta - now)}")
        if progress.margin is not None and progress.margin < 0:
            words.append(f"misses its deadline by {span(-progress.margin)}")
    line = ", ".join(words)
    if progress.waiting is not None:
        line += f"; waits: {shown(progress.waiting.reason, _REASON)}"
    return line


def describe(group: Group) -> str:
    """Return a cause of failures as one line."""
    what = " ".join(shown(word, _MESSAGE) for word in (group.status, group.code) if word is not None)
    ids = ", ".join(shown(custom_id, 40) for custom_id in group.custom_ids[:_IDS])
    of = f"  e.g. {ids}" if ids else ""
    return f"{group.count:,}× {what}: {shown(group.example or group.message, _MESSAGE)}  [{shown(group.id, 40)}]{of}"


def clock_time(moment: float, now: float, zone: tzinfo | None = None) -> str:
    """Return the hour of a moment, with its date where that is not today's."""
    at, today = datetime.fromtimestamp(moment, UTC).astimezone(zone), datetime.fromtimestamp(now, UTC).astimezone(zone)
    return f"{at:%H:%M}" if at.date() == today.date() else f"{at:%Y-%m-%d %H:%M}"


def _title(progress: Progress) -> Text:
    title = Text(f"{shown(progress.batch_id)}  ") + Text(
        _state(progress), style=f"bold {_STYLES.get(progress.status, '')}".strip()
    )
    if progress.priority:
        title += Text(f"  priority {progress.priority}")
    if progress.queue_position and not progress.is_final:
        title += Text(f"  {progress.queue_position} before it")
    return title


def _state(progress: Progress) -> str:
    paused = progress.paused_at is not None and not progress.is_final
    return f"{shown(progress.status)}{' (paused)' if paused else ''}"


def _rates(progress: Progress) -> str:
    words = ["-- lines/s" if progress.lines_per_second is None else f"{progress.lines_per_second:,.1f} lines/s"]
    for kind in ("prompt", "completion"):
        rate = getattr(progress, f"{kind}_tokens_per_second")
        if rate is not None:
            words.append(f"{rate:,.0f} {kind} tokens/s")
    return " · ".join(words)


def _deadline(progress: Progress, now: float, zone: tzinfo | None) -> Text:
    if progress.eta is None:
        text = Text("ETA --")
    else:
        text = Text(f"ETA {span(progress.eta - now)} ({clock_time(progress.eta, now, zone)})")
    if progress.expires_at is not None:
        text += Text(f" · deadline in {span(progress.expires_at - now)}")
    if progress.margin is not None and progress.margin < 0:
        text += Text(f" · will miss it by {span(-progress.margin)}", style="bold red")
    elif progress.margin is not None:
        text += Text(f" · {span(progress.margin)} to spare", style="green")
    return text


def _used(progress: Progress) -> str | None:
    usage, words = progress.usage, []
    if usage is not None and usage.input_tokens + usage.output_tokens:
        words.append(f"{usage.input_tokens:,} prompt and {usage.output_tokens:,} completion tokens")
    if progress.cost is not None:
        words.append(money(progress.cost.amount, progress.cost.currency))
    if progress.retries:
        words.append(f"{progress.retries:,} sends again")
    return " · ".join(words) or None
