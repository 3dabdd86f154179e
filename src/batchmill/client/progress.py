"""How a batch goes, as the server says it, or as it is put together from a Batch where there is no such route."""

from collections import deque
from typing import Any

import msgspec

from batchmill.client.failure import Failed
from batchmill.spec.states import FINAL, Status

Json = dict[str, Any]

_SPAN = 60.0  # seconds that a rate is taken over
_FINAL = frozenset(status.value for status in FINAL)


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Lines of a batch."""

    completed: int = 0
    failed: int = 0
    total: int = 0

    @property
    def done(self) -> int:
        """Those that have a result."""
        return self.completed + self.failed


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Why it does not move on, and since when (Unix seconds)."""

    reason: str
    since: int | None = None


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Failed lines of one cause."""

    id: str
    count: int
    message: str = ""
    example: str | None = None
    status: int | None = None
    code: str | None = None
    custom_ids: list[str] = []


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What was used so far."""

    input_tokens: int = 0
    output_tokens: int = 0


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Money."""

    amount: float
    currency: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch goes. Times are Unix seconds; what nobody knows is None."""

    batch_id: str
    status: str
    request_counts: Counts = Counts()
    paused_at: int | None = None
    priority: int = 0
    lines_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    completion_tokens_per_second: float | None = None
    usage: Tokens | None = None
    cost: Cost | None = None
    eta: int | None = None
    expires_at: int | None = None
    margin: int | None = None
    queue_position: int | None = None
    waiting: Waiting | None = None
    retries: int = 0
    error_groups: list[Group] = []
    errors_ungrouped: int = 0

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in _FINAL


def read_progress(found: Json) -> Progress:
    """Return a `batch.progress` object; members that are not known are passed over.

    Raises:
        Failed: it is none.
    """
    try:
        return msgspec.convert(found, Progress, strict=False)
    except msgspec.ValidationError as fault:
        raise Failed(f"The server's progress cannot be read: {fault}.") from fault


def is_final(batch: Json) -> bool:
    """Return whether nothing will change in a Batch any more."""
    return batch.get("status") in _FINAL


class Observed:
    """Puts `batch.progress` objects together from a Batch that is looked at again and again."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def progress(self, batch: Json, now: float) -> Json:
        """Return how a Batch goes, of which nothing is said but itself; `now` in Unix seconds."""
        given = batch.get("request_counts") or {}
        counts = {name: given.get(name) or 0 for name in ("completed", "failed", "total")}
        done, total = counts["completed"] + counts["failed"], counts["total"]
        rate = self._rate(now, done) if batch.get("status") == Status.IN_PROGRESS else None
        told = batch.get("progress") or {}  # Batchmill's own, where it is an earlier one
        rate = told.get("lines_per_second", rate)
        eta = told.get("eta", round(now + (total - done) / rate) if rate and total else None)
        expires = batch.get("expires_at")
        margin = None if eta is None or expires is None else expires - eta
        return {
            "object": "batch.progress",
            "batch_id": batch.get("id", ""),
            "status": batch.get("status", ""),
            "paused_at": batch.get("paused_at"),
            "priority": batch.get("priority") or 0,
            "request_counts": counts,
            "lines_per_second": rate,
            "prompt_tokens_per_second": None,
            "completion_tokens_per_second": None,
            "usage": batch.get("usage"),
            "cost": batch.get("cost"),
            "eta": eta,
            "expires_at": expires,
            "margin": margin,
            "misses_by": None if margin is None or margin >= 0 else -margin,
            "queue_position": None,
            "waiting": None,
            "retries": 0,
            "backends": [],
            "error_groups": [],
            "errors_ungrouped": counts["failed"],
        }

    def _rate(self, now: float, done: int) -> float | None:
        """Return the lines a second of the last minute; None until two looks differ."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[0][0] < now - _SPAN:  # noqa: PLR2004 - a rate has two ends
            self._seen.popleft()
        then, before = self._seen[0]
        return (done - before) / (now - then) if now > then and done > before else None
