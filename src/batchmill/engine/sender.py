"""One attempt at one line: sent as it was written (but for an alias), judged, and what became of it."""

from collections import Counter
from collections.abc import Callable

import msgspec
import structlog
from msgspec.structs import replace

from batchmill.backends.backend import Call, Reply
from batchmill.clock import Clock
from batchmill.engine.lanes import Lane
from batchmill.engine.loop import Bell
from batchmill.engine.work import Request
from batchmill.ledger.segment import Result
from batchmill.schedule.retry import SUCCEEDED, Done, GaveUp, Later, Verdict, judge
from batchmill.spec.models import NOTHING_CONFIGURED, Catalogue, refusal, with_model
from batchmill.spec.results import answered, result_id, unanswered, usage_of
from batchmill.telemetry import UNTRACED, Metrics, Traces

_OK = 200
_EXCERPT = 500  # characters of a reply that is no usable answer, for the one who has to find out why


class Sender:
    """Sends lines and judges the replies.

    Args:
        clock: Tells the time.
        draw: Uniform in [0, 1): the jitter of retries.
        once: No line may run twice: where its answer was lost it ends (`on_unknown_outcome = "fail"`).
        unwell: Rung when a Backend needs a probe.
        metrics: Counts sends and replies.
        catalogue: What is configured of models.
        traces: Where the spans of some calls go; None: nowhere.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        draw: Callable[[], float],
        once: bool,
        unwell: Bell,
        metrics: Metrics,
        catalogue: Catalogue = NOTHING_CONFIGURED,
        traces: Traces | None = None,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._once = once
        self._unwell = unwell
        self._catalogue = catalogue
        self._metrics = metrics
        self._traces = traces
        self._sends: Counter[str] = Counter()  # by backend; to be told
        self._replies: Counter[tuple[str, str]] = Counter()  # by backend and verdict
        self._log = structlog.get_logger("sender")

    def tell(self) -> None:
        """Show what was sent and answered since the last time: a labelled count is two look-ups and a lock."""
        for backend, count in self._sends.items():
            self._metrics.sends.labels(backend).inc(count)
        for labels, count in self._replies.items():
            self._metrics.replies.labels(*labels).inc(count)
        self._sends.clear()
        self._replies.clear()

    async def send(self, lane: Lane, request: Request, *, trial: bool, sent_at: float) -> Result | Later:
        """Make one attempt; the pace has counted it as sent at `sent_at` (boot clock), `trial` is what it said.

        Returns the line's Result, or when and why it is to be sent again.
        """
        work = request.work
        line_id = result_id(work.batch_id, request.record.line)
        request_id = f"req{line_id.removeprefix('batch_req')}_{work.claim.slice.epoch}a{request.sends}"
        envelope = work.envelope(request)
        configured = self._catalogue.is_configured(work.model)  # else the line names it so, and nothing is locked
        refused = refusal(envelope.body, self._catalogue.facts(work.model)) if configured else None
        if refused is not None:
            lane.pace.withdrawn(sent_at)  # nothing leaves
            text = answered(
                line_id, envelope.custom_id, refused.status, request_id, msgspec.json.encode(refused.body())
            )
            return Result(index=request.index, succeeded=False, attempts=0, text=text)
        call = Call(
            endpoint=work.claim.batch.object.endpoint,
            body=with_model(envelope.body, work.model) if configured else envelope.body,
            request_id=request_id,
            idempotency_key=line_id,
            once=self._once,
        )
        self._sends[lane.backend.name] += 1
        traced = self._traces is not None and self._traces.may_call()
        reply = await (self._send_traced(lane, request, call) if traced else lane.backend.send(call))
        if reply.resent:
            self._sends[lane.backend.name] += reply.resent
            request.resent += reply.resent
        attempts = request.sends + request.resent
        verdict = self._judge(lane, request, reply, trial=trial, sent_at=sent_at)
        if isinstance(verdict, Later):
            return verdict
        if isinstance(verdict, Done) and reply.status is not None:
            text = answered(line_id, envelope.custom_id, reply.status, request_id, reply.body)
            usage = usage_of(reply.body) if verdict.succeeded else None
            return Result(
                index=request.index,
                succeeded=verdict.succeeded,
                attempts=attempts,
                text=text,
                usage=usage,
                backend=lane.backend.name,
            )
        if isinstance(verdict, GaveUp):
            return give_up(request, verdict, attempts=attempts, excerpt=reply.body, backend=lane.backend.name)
        raise ValueError("a Reply without a status cannot be done")

    async def _send_traced(self, lane: Lane, request: Request, call: Call) -> Reply:
        """Make a call that is told of; the backend hears of the span, and may go on with its trace."""
        traces, work = self._traces or UNTRACED, request.work
        with traces.call(batch=work.batch_id) as span:
            reply = await lane.backend.send(replace(call, traceparent=span.traceparent))
            fault = None if reply.fault is None else reply.fault.value
            span.tell(
                {
                    "batchmill.backend": lane.backend.name,
                    "batchmill.model": work.model,
                    "batchmill.organisation": work.claim.batch.organisation_id,
                    "batchmill.request_id": call.request_id,
                    "batchmill.sends": request.sends,
                    "http.response.status_code": reply.status,
                    "error.type": fault,
                }
            )
            if fault is not None:
                span.fail(fault)
            return reply

    def _judge(self, lane: Lane, request: Request, reply: Reply, *, trial: bool, sent_at: float) -> Verdict:
        """Say what a Reply means, and let line and pace learn from it."""
        now = self._clock.boot()
        if reply.status == _OK and reply.fault is None:  # nearly every reply; `judge` would say the same
            lane.pace.answered(SUCCEEDED, now, sent_at, work=len(reply.body), prefill=request.prompt_tokens)
            self._replies[lane.backend.name, "succeeded"] += 1
            return SUCCEEDED
        if request.doubted is not None:
            where, since = request.doubted
            request.attempts += where.answered_since(since)  # others succeeded: the failure was the line's own
            request.doubted = None
        verdict = judge(
            status=reply.status,
            fault=reply.fault,
            retry_after=reply.retry_after,
            attempts=request.attempts + 1,
            draw=self._draw(),
            falls=request.falls + 1 if trial else None,
            once=self._once,
        )
        if isinstance(verdict, Later):
            request.attempts += verdict.attempt_used
            request.falls += verdict.doubt and trial
            request.doubted = (lane.pace, now) if verdict.doubt and not trial else None
        was_well = lane.pace.unwell_since is None
        why = reply.detail or ("" if reply.status is None else f"it answered with status {reply.status}")
        lane.pace.answered(verdict, now, sent_at, why, work=len(reply.body), prefill=request.prompt_tokens)
        self._replies[lane.backend.name, _name(verdict)] += 1
        if was_well and lane.pace.unwell_since is not None:
            self._log.warning("backend unwell: its requests wait", backend=lane.backend.name, reason=why)
            self._unwell.ring()
        return verdict


def give_up(
    request: Request, verdict: GaveUp, *, attempts: int, excerpt: bytes = b"", backend: str | None = None
) -> Result:
    """Return the Result of a line that ends without an HTTP answer; `excerpt` is what came in its place, from where."""
    work = request.work
    message = verdict.message
    if verdict.code == "invalid_backend_response" and excerpt:
        message = f"{message} It began: {excerpt.decode(errors='replace')[:_EXCERPT]}"
    text = unanswered(
        result_id(work.batch_id, request.record.line),
        work.envelope(request).custom_id,
        verdict.code,
        message,
    )
    return Result(index=request.index, succeeded=False, attempts=attempts, text=text, backend=backend)


def _name(verdict: Verdict) -> str:
    """Return the label of a verdict."""
    match verdict:
        case Done():
            return "succeeded" if verdict.succeeded else "refused"
        case GaveUp():
            return verdict.code
        case Later():
            return next((name for name in ("pressure", "unwell", "doubt") if getattr(verdict, name)), "attempt")
