"""The objects on the wire: File, Batch, lists and models, each with every key of the contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from batchmill.schedule.forecast import Forecast
from batchmill.spec.prices import Cost
from batchmill.spec.states import Status

MORE_ERRORS = "more_errors"  # the code of the entry that closes a shortened list of errors


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """One thing wrong with one line of input; `line` is the physical line from 1, None for the file as a whole."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None

    def wire(self) -> dict[str, object]:
        """Return an entry of `errors.data` (contract c.3)."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


def more_errors(count: int) -> LineError:
    """Return the entry that closes a list from which `count` errors were left out (choice 12)."""
    return LineError(code=MORE_ERRORS, message=f"{count} more errors are not listed.")


def shorten(errors: Sequence[LineError], shown: int) -> list[LineError]:
    """Return the first `shown` errors, and a closing entry that counts all others, those left out before included."""
    before = 0
    if errors and errors[-1].code == MORE_ERRORS:
        before = int(errors[-1].message.split()[0])  # its only form is the one of more_errors above
        errors = errors[:-1]
    left_out = before + max(0, len(errors) - shown)
    return [*errors[:shown], more_errors(left_out)] if left_out else list(errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileObject:
    """A File as the API shows it (contract a.1). Times are whole Unix seconds."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None

    def wire(self) -> dict[str, object]:
        """Return the File object; `processed` ends the official client's waiting at once (contract f.6)."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": self.expires_at,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Lines of a batch; `failed` includes those cancelled or expired (choice 3)."""

    completed: int = 0
    failed: int = 0
    total: int = 0

    def wire(self) -> dict[str, object]:
        """Return `request_counts`."""
        return {"completed": self.completed, "failed": self.failed, "total": self.total}


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens, of one reply or summed over a batch."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def wire(self) -> dict[str, object]:
        """Return `usage` with all five keys: a partial one breaks the strict client (contract a.7)."""
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchObject:
    """A Batch as the API shows it (contract a.7), with its forecast. Times are whole Unix seconds."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    created_at: int
    counts: Counts = Counts()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    metadata: Mapping[str, str] | None = None
    expired_at: int | None = None
    errors: tuple[LineError, ...] | None = None
    model: str | None = None
    usage: Usage | None = None
    progress: Forecast | None = None
    paused_at: int | None = None
    priority: int = 0
    cost: Cost | None = None
    parent_id: str | None = None

    def wire(self, errors_shown: int | None = None) -> dict[str, object]:
        """Return the Batch object, every key always there; in lists only `errors_shown` errors and a closing one."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status.value,
            "created_at": self.created_at,
            "request_counts": self.counts.wire(),
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "metadata": None if self.metadata is None else dict(self.metadata),
            "expired_at": self.expired_at,
            "errors": None if self.errors is None else error_list(self.errors, errors_shown),
            "model": self.model,
            "usage": None if self.usage is None else self.usage.wire(),
            "progress": None if self.progress is None else _progress(self.progress),
            "paused_at": self.paused_at,
            "priority": self.priority,
            "cost": None if self.cost is None else self.cost.wire(),
            "parent_id": self.parent_id,
        }


def _progress(forecast: Forecast) -> dict[str, object]:
    """Return `progress`, which is ours: it is in answers only, where clients pass over what they do not know."""
    return {
        "lines_per_second": forecast.lines_per_second,
        "tokens_per_second": forecast.tokens_per_second,
        "eta": forecast.eta,
        "misses_by": forecast.misses_by,
    }


def error_list(errors: Sequence[LineError], shown: int | None = None) -> dict[str, object]:
    """Return `errors` (contract c.3), the first of them if only so many are to be shown."""
    entries = errors if shown is None else shorten(errors, shown)
    return {"object": "list", "data": [entry.wire() for entry in entries]}


def file_deleted(file_id: str) -> dict[str, object]:
    """Return the answer to a delete; the strict client takes no other `object` than "file" (contract a.4)."""
    return {"id": file_id, "object": "file", "deleted": True}


def list_page(items: Sequence[Mapping[str, object]], *, has_more: bool) -> dict[str, object]:
    """Return a page of objects on the wire; without `has_more` the official client would ask for ever (a.2)."""
    return {
        "object": "list",
        "data": list(items),
        "has_more": has_more,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
    }


def model_object(
    name: str, created: int, owned_by: str = "batchmill", extras: Mapping[str, object] = MappingProxyType({})
) -> dict[str, object]:
    """Return a Model, `extras` being those of Kimi that are configured; the strict client needs `created` (a.10)."""
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by, **extras}


def model_list(models: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return the answer of `GET /v1/models`, which has no pages (contract a.10)."""
    return {"object": "list", "data": list(models)}
