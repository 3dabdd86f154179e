"""What is told of each request: one id in its log lines, its span and its answer; and a line of its own, if asked for.

Never a query, a header or a body: they may hold what is secret. A path that is none of ours is not told either.
"""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from batchmill.clock import Clock
from batchmill.spec.ids import is_id
from batchmill.telemetry import Traces

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OURS = 500  # from here on a status is our own fault


@dataclass(slots=True)
class Seen:
    """What became of a request; 0: it was not answered."""

    status: int = 0


class Told:
    """Tells of requests.

    Args:
        traces: Where spans go.
        clock: Measures how long they take.
        access_log: Whether each has a line in the log.
    """

    def __init__(self, *, traces: Traces, clock: Clock, access_log: bool) -> None:
        self._traces = traces
        self._clock = clock
        self._access_log = access_log
        self._log = structlog.get_logger("access")

    @contextmanager
    def request(self, scope: MutableMapping[str, Any], request_id: str) -> Iterator[Seen]:
        """Tell of a request when it is over; whoever logs meanwhile names its id."""
        began, seen = self._clock.boot(), Seen()
        parents = [value for name, value in scope["headers"] if name == b"traceparent"]
        parent = parents[0].decode("latin-1") if len(parents) == 1 else None
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            self._traces.span(method, parent=parent, serves=True) as span,
        ):
            try:
                yield seen
            finally:
                state, route = scope.get("state", {}), getattr(scope.get("route"), "path", None)
                who = {"organisation": state.get("organisation_id"), "key": state.get("key_id")}
                if route is not None:
                    span.name(f"{method} {route}")
                span.tell(
                    {
                        "http.request.method": method,
                        "http.route": route,
                        "http.response.status_code": seen.status or None,
                        "batchmill.request_id": request_id,
                        "batchmill.organisation": who["organisation"],
                        "batchmill.batch": _about(scope, "batch"),
                        "batchmill.file": _about(scope, "file"),
                    }
                )
                if seen.status >= _OURS:
                    span.fail(str(seen.status))
                if self._access_log:
                    took = round((self._clock.boot() - began) * 1000, 1)
                    self._log.info("request", method=method, route=route, status=seen.status, ms=took, **who)


def _about(scope: MutableMapping[str, Any], kind: str) -> str | None:
    """Return the batch, or the File, that a path names or that was made; what stands in a path may be anything."""
    named = scope.get("path_params", {}).get(f"{kind}_id"), scope.get("state", {}).get("made")
    return next((each for each in named if each is not None and is_id(each, prefix=kind)), None)
