"""What the API tells of how far a batch is, and of what became of its lines."""

from collections.abc import Sequence
from dataclasses import dataclass

from batchmill.schedule.forecast import UNKNOWN
from batchmill.spec.groups import ErrorGroup
from batchmill.spec.objects import BatchObject, Usage
from batchmill.spec.states import FINAL

GROUPS_KEPT = 64  # a batch
_GROUPS_SHOWN = 20
IDS_KEPT = 5  # custom_ids a group: the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one backend has done of a batch: lines that it had the last word on, and their tokens."""

    backend: str
    lines: int
    prompt_tokens: int
    completion_tokens: int

    def wire(self) -> dict[str, object]:
        """Return an entry of `backends`."""
        return {
            "backend": self.backend,
            "lines": self.lines,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """The failed lines of one group: how many, the custom_ids of the first, and what one says as it came, if kept."""

    group: ErrorGroup
    count: int
    custom_ids: tuple[str, ...]
    example: str | None = None

    def wire(self) -> dict[str, object]:
        """Return an entry of `error_groups`."""
        return {
            "id": self.group.id,
            "status": self.group.status,
            "code": self.group.code,
            "message": self.group.message,
            "example": self.example,
            "count": self.count,
            "custom_ids": list(self.custom_ids),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressObject:
    """How far a batch is. Times are whole Unix seconds.

    `waiting` says why it does not move on, and since when; `ahead` how many batches come before it, None if it is
    final; `retries` counts sends of lines beyond their first; `errors` are all groups that are kept.
    """

    batch: BatchObject
    waiting: tuple[str, int] | None
    ahead: int | None
    retries: int
    shares: Sequence[Share]
    errors: Sequence[Errors]

    @property
    def is_final(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.batch.status in FINAL

    def wire(self) -> dict[str, object]:
        """Return the object, every key always there."""
        batch, course = self.batch, self.batch.progress or UNKNOWN
        margin = None if course.eta is None or batch.expires_at is None else batch.expires_at - course.eta
        shown = sorted(self.errors, key=lambda errors: (-errors.count, errors.group.id))[:_GROUPS_SHOWN]
        return {
            "object": "batch.progress",
            "batch_id": batch.id,
            "status": batch.status.value,
            "paused_at": batch.paused_at,
            "priority": batch.priority,
            "request_counts": batch.counts.wire(),
            "lines_per_second": course.lines_per_second,
            "prompt_tokens_per_second": course.prompt_tokens_per_second,
            "completion_tokens_per_second": course.completion_tokens_per_second,
            "usage": (batch.usage or Usage()).wire(),
            "cost": None if batch.cost is None else batch.cost.wire(),
            "eta": course.eta,
            "expires_at": batch.expires_at,
            "margin": margin,
            "misses_by": course.misses_by,
            "queue_position": self.ahead,
            "waiting": None if self.waiting is None else {"reason": self.waiting[0], "since": self.waiting[1]},
            "retries": self.retries,
            "backends": [share.wire() for share in self.shares],
            "error_groups": [errors.wire() for errors in shown],
            "errors_ungrouped": max(0, batch.counts.failed - sum(errors.count for errors in self.errors)),
        }
