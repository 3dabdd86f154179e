"""Traces as the rooms see them: a span around a piece of work; none at all where nobody has asked for traces."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Fact = str | int | float | bool


class Span(Protocol):
    """One piece of work. No key, prompt, answer or custom_id is ever among its facts."""

    @property
    def traceparent(self) -> str | None:
        """What tells the next server of this span (W3C Trace Context); None where it is not kept."""

    def name(self, name: str) -> None:
        """Call it otherwise than it was called when it began."""

    def tell(self, facts: Mapping[str, Fact | None]) -> None:
        """Add what is known of it; None is nothing known."""

    def fail(self, why: str) -> None:
        """Say that it failed."""


class Traces(Protocol):
    """Where spans go. All that is done for a batch is one trace, whoever does it."""

    def span(
        self, name: str, *, batches: Sequence[str] = (), parent: str | None = None, serves: bool = False
    ) -> AbstractContextManager[Span]:
        """Begin a span: in the trace of the one batch it is for, or of the `traceparent` that a client sent.

        One that is for several batches has a trace of its own, and links to theirs. `serves`: it answers a request.
        """

    def may_call(self) -> bool:
        """Say whether a call to a backend is traced now: some each second are, of thousands."""

    def call(self, *, batch: str) -> AbstractContextManager[Span]:
        """Begin the span of a call to a backend."""


class _Nothing:
    """A span of which nothing is kept."""

    traceparent = None

    def name(self, name: str) -> None:
        """See `Span`."""

    def tell(self, facts: Mapping[str, Fact | None]) -> None:
        """See `Span`."""

    def fail(self, why: str) -> None:
        """See `Span`."""


class _Untraced:
    """No traces."""

    @contextmanager
    def span(
        self,
        name: str,  # noqa: ARG002 - as `Traces`
        *,
        batches: Sequence[str] = (),  # noqa: ARG002 - the same
        parent: str | None = None,  # noqa: ARG002 - the same
        serves: bool = False,  # noqa: ARG002 - the same
    ) -> Iterator[Span]:
        """See `Traces`."""
        yield _Nothing()

    def may_call(self) -> bool:
        """See `Traces`."""
        return False

    def call(self, *, batch: str) -> AbstractContextManager[Span]:
        """See `Traces`."""
        return self.span("call", batches=[batch])


UNTRACED = _Untraced()
