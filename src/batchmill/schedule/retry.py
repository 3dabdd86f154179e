"""What a Reply means for a Request: a table of verdicts, and the time to wait before the next try.

The rule in one breath: what the line itself caused is its result, what the backend or its operator caused costs the
line nothing, and what may be either costs one of five attempts while other lines succeed; while none does, the lines go
alone, and one that fells the backend three times alone is given up (design, "Verdicts").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from types import MappingProxyType

ATTEMPTS = 5  # design, "Verdicts": one of five attempts
FALLS = 3  # the same: a line that fells the backend three times alone is given up
FIRST_WAIT = 0.5  # seconds; doubles with each attempt used up
LONGEST_WAIT = 30.0  # seconds, of our own backoff
LONGEST_RETRY_AFTER = 60.0  # seconds, however long the backend asks for
PATIENCE = 1.0  # seconds, about, when no attempt is used up and the backend names no time


class Fault(StrEnum):
    """Why a call to a backend brought no usable reply."""

    UNREACHABLE = "unreachable"  # never sent: refused, no such name, TLS
    RESET = "reset"  # the connection was lost after the request may have left
    TIMEOUT = "timeout"
    GARBLED = "garbled"  # 2xx, but not a JSON object in UTF-8
    OVERSIZE = "oversize"  # above the cap on a reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The reply is the Result: a line of the output file if it succeeded, else of the error file.

    `doubt` as in `Later`: the last word came from a gateway, and says nothing good of the backend.
    """

    succeeded: bool
    doubt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """The Request is sent again `after` seconds or more.

    `pressure` (429) makes the window smaller; `unwell` stops sending to this backend until a probe succeeds. `doubt`
    says that line and backend may both be the cause: it costs an attempt once another line has succeeded.
    """

    after: float
    attempt_used: bool = False
    pressure: bool = False
    unwell: bool = False
    doubt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """The Request ends without an HTTP answer: the code and message of its line in the error file.

    `doubt` as in `Later`: what ended it may have been the backend all the same.
    """

    code: str
    message: str
    doubt: bool = False


Verdict = Done | Later | GaveUp


class _Rule(Enum):
    SUCCEEDED = auto()
    REFUSED = auto()  # the line's own fault: the answer is its result
    PRESSURE = auto()  # sound, but busy: wait, no attempt used up
    UNWELL = auto()  # the backend's or its operator's fault: wait, no attempt used up
    ATTEMPT = auto()  # the backend lives and says that it failed: one attempt is used up
    DOUBT = auto()  # the line may have felled the backend, or the backend may be down: others will tell
    HOPELESS = auto()  # trying again would end the same


# What a status means; any other status goes by its class.
_BY_STATUS: Mapping[int, _Rule] = MappingProxyType(
    {
        401: _Rule.UNWELL,  # the operator's key
        403: _Rule.UNWELL,  # the operator's rights
        404: _Rule.UNWELL,  # the operator's URL, or a model that the backend listed
        408: _Rule.ATTEMPT,
        425: _Rule.ATTEMPT,
        429: _Rule.PRESSURE,
        502: _Rule.DOUBT,  # what a proxy says of a backend that died
        503: _Rule.UNWELL,
        504: _Rule.DOUBT,
        529: _Rule.UNWELL,  # "overloaded" of some hosted providers
    }
)
_BY_CLASS: Mapping[int, _Rule] = MappingProxyType(
    {
        2: _Rule.SUCCEEDED,
        3: _Rule.UNWELL,  # redirects are not followed: the operator's URL is wrong
        4: _Rule.REFUSED,
    }
)
_BY_FAULT: Mapping[Fault, _Rule] = MappingProxyType(
    {
        Fault.UNREACHABLE: _Rule.UNWELL,
        Fault.RESET: _Rule.DOUBT,
        Fault.TIMEOUT: _Rule.DOUBT,
        Fault.GARBLED: _Rule.DOUBT,
        Fault.OVERSIZE: _Rule.HOPELESS,
    }
)
_LAST_WORD: Mapping[Fault | None, GaveUp] = MappingProxyType(
    {
        None: GaveUp(
            code="upstream_unavailable", message="The model server failed over this request each time.", doubt=True
        ),
        Fault.RESET: GaveUp(
            code="upstream_unavailable", message="The model server dropped the connection each time.", doubt=True
        ),
        Fault.TIMEOUT: GaveUp(code="request_timeout", message="No answer from the model server in time.", doubt=True),
        Fault.GARBLED: GaveUp(
            code="invalid_backend_response", message="The model server's answer is not a JSON object.", doubt=True
        ),
        Fault.OVERSIZE: GaveUp(
            code="invalid_backend_response", message="The model server's answer is too large to keep."
        ),
    }
)


SUCCEEDED = Done(succeeded=True)
REFUSED = Done(succeeded=False)
OUTCOME_UNKNOWN = GaveUp(
    code="outcome_unknown",
    message="This request may have run, and its answer was lost. It was not sent again: on_unknown_outcome is fail.",
    doubt=True,
)
WORKER_CRASHED = GaveUp(
    code="worker_crashed",
    message="The process that sent this request died of it, three times with nothing else to do.",
)


def judge(
    *,
    status: int | None,
    fault: Fault | None,
    retry_after: float | None,
    attempts: int,
    draw: float,
    falls: int | None = None,
    once: bool = False,
) -> Verdict:
    """Say what a reply means for its Request.

    Args:
        status: The HTTP status, if there was one.
        fault: What went wrong, if anything; it weighs more than the status.
        retry_after: Seconds that the backend asks for; anything at all may stand here, it is clamped.
        attempts: Attempts used up so far, this one included if it counts; from 1.
        draw: A random number in [0, 1), for the jitter.
        falls: If the line went alone, as the trial of an unwell backend: how often it failed so, this time included.
        once: The line must not run twice: where its answer was lost it ends (`on_unknown_outcome = "fail"`).
    """
    rule = _rule(status, fault)
    if rule is _Rule.DOUBT and once:
        return OUTCOME_UNKNOWN
    if rule is _Rule.DOUBT and falls is not None:
        return _LAST_WORD[fault] if falls >= FALLS else Later(after=_patience(None, draw), doubt=True)
    match rule:
        case _Rule.SUCCEEDED | _Rule.REFUSED:
            return SUCCEEDED if rule is _Rule.SUCCEEDED else REFUSED
        case _Rule.PRESSURE | _Rule.UNWELL:
            # An unwell backend's circuit waits, not the line: it is used within ten seconds (reliability, targets).
            unwell = rule is _Rule.UNWELL
            wait = _patience(None if unwell else retry_after, draw)
            return Later(after=wait, pressure=not unwell, unwell=unwell)
        case _Rule.ATTEMPT | _Rule.DOUBT if attempts < ATTEMPTS:
            doubt = rule is _Rule.DOUBT
            return Later(after=_backoff(attempts, retry_after, draw), attempt_used=not doubt, doubt=doubt)
    # The last HTTP answer, if there is one, is the line (contract g-27).
    answer = Done(succeeded=False, doubt=rule is _Rule.DOUBT)
    return answer if fault is None and status is not None else _LAST_WORD[fault]


def _rule(status: int | None, fault: Fault | None) -> _Rule:
    if fault is not None:
        return _BY_FAULT[fault]
    if status is None:
        return _Rule.ATTEMPT
    return _BY_STATUS.get(status) or _BY_CLASS.get(status // 100, _Rule.ATTEMPT)


def _patience(retry_after: float | None, draw: float) -> float:
    return max(PATIENCE * (0.5 + draw), _clamp(retry_after))


def _backoff(attempts: int, retry_after: float | None, draw: float) -> float:
    span = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (attempts - 1))
    return max(span * (1.0 + draw) / 2.0, _clamp(retry_after))


def _clamp(retry_after: float | None) -> float:
    if retry_after is None or math.isnan(retry_after):
        return 0.0
    return min(max(retry_after, 0.0), LONGEST_RETRY_AFTER)
