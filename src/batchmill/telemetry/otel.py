"""Traces by OpenTelemetry, as its usual environment variables say; imported only where an endpoint is set."""

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from batchmill.telemetry.traces import Fact, Span

_CALLS_PER_SECOND = 10  # a batch has a million of them
_MOST_LINKS = 16
_LAST_SECONDS = 3.0  # for what is not sent yet when the process ends
_NAME = "service.name"


def trace_of(batch_id: str) -> int:
    """Return the id of the trace that holds all that is done for a batch: who knows the one finds the other."""
    return int.from_bytes(hashlib.blake2b(batch_id.encode(), digest_size=16).digest())


class OtelTraces:
    """Spans that go out over OTLP/HTTP, in batches, by a thread of their own: nobody waits for them.

    The environment says where to, and how many are kept (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER …). A
    batch's trace is kept or dropped as a whole where the sampler goes by the trace's id. Lives in one event loop.

    Args:
        process: What this process is, such as "worker".
        named: Whether the environment names the service; else it is `batchmill`.
    """

    def __init__(self, *, process: str, named: bool) -> None:
        facts = {"batchmill.process": process} | ({} if named else {_NAME: "batchmill"})
        self._ids = _Ids()
        self._provider = TracerProvider(resource=Resource.create(facts), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("batchmill")
        self._second = self._calls = 0

    @contextmanager
    def span(
        self, name: str, *, batches: Sequence[str] = (), parent: str | None = None, serves: bool = False
    ) -> Iterator[Span]:
        """See `Traces`."""
        kind = SpanKind.SERVER if serves else SpanKind.INTERNAL
        with self._begun(name, kind=kind, batches=batches, parent=parent) as span:
            yield span

    def may_call(self) -> bool:
        """See `Traces`."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._calls = second, 0
        self._calls += 1
        return self._calls <= _CALLS_PER_SECOND

    def call(self, *, batch: str) -> AbstractContextManager[Span]:
        """See `Traces`."""
        return self._begun("call", kind=SpanKind.CLIENT, batches=[batch], parent=None)

    def close(self) -> None:
        """Send what is not sent yet, but not for long: a collector that hangs keeps no process from ending."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_LAST_SECONDS)

    @contextmanager
    def _begun(self, name: str, *, kind: SpanKind, batches: Sequence[str], parent: str | None) -> Iterator[Span]:
        above = Context()
        if parent is not None:
            above = TraceContextTextMapPropagator().extract({"traceparent": parent}, context=above)
        links = [Link(_context_of(batch)) for batch in batches[:_MOST_LINKS]] if len(batches) > 1 else []
        self._ids.wanted = trace_of(batches[0]) if len(batches) == 1 else None
        span = self._tracer.start_span(name, context=above, kind=kind, links=links)
        self._ids.wanted = None
        if len(batches) == 1:
            span.set_attribute("batchmill.batch", batches[0])
        try:
            yield _OtelSpan(span)
        except Exception as fault:
            span.set_status(Status(StatusCode.ERROR, type(fault).__name__))  # its text may hold what is a tenant's
            raise
        finally:
            span.end()


class _Ids(RandomIdGenerator):
    """Random ids, but for a trace whose id is wanted."""

    wanted: int | None = None

    def generate_trace_id(self) -> int:
        """Return the id of a trace that begins."""
        return super().generate_trace_id() if self.wanted is None else self.wanted


class _OtelSpan:
    """A span that goes out."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """See `Span`."""
        if not self._span.is_recording():
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def name(self, name: str) -> None:
        """See `Span`."""
        self._span.update_name(name)

    def tell(self, facts: Mapping[str, Fact | None]) -> None:
        """See `Span`; a batch that becomes known so is linked to."""
        for name, fact in facts.items():
            if fact is not None:
                self._span.set_attribute(name, fact)
        batch = facts.get("batchmill.batch")
        if isinstance(batch, str):
            self._span.add_link(_context_of(batch))

    def fail(self, why: str) -> None:
        """See `Span`."""
        self._span.set_status(Status(StatusCode.ERROR, why))


def _context_of(batch_id: str) -> SpanContext:
    """Return what a link to a batch's trace names: the trace; no span of it is the first."""
    number = trace_of(batch_id)
    return SpanContext(number, number & (1 << 64) - 1, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
