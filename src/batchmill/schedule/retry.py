"""What a Reply means for a Request: a table of verdicts, and the time to wait before the next try.

The rule in one breath: what the line itself caused is its result, what the backend or its operator caused costs the
line nothing, and what may be either costs one of five attempts (design, "Verdicts").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from types import MappingProxyType

ATTEMPTS = 5  # design, "Verdicts": one of five attempts
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
    """The reply is the Result: a line of the output file if it succeeded, else of the error file."""

    succeeded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """The Request is sent again `after` seconds or more.

    `pressure` (429) makes the window smaller; `unwell` stops sending to this backend until a probe succeeds.
    """

    after: float
    attempt_used: bool
    pressure: bool
    unwell: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """The Request ends without an HTTP answer: the code and message of its line in the error file."""

    code: str
    message: str


Verdict = Done | Later | GaveUp


class _Rule(Enum):
    SUCCEEDED = auto()
    REFUSED = auto()  # the line's own fault: the answer is its result
    PRESSURE = auto()  # sound, but busy: wait, no attempt used up
    UNWELL = auto()  # the backend's or its operator's fault: wait, no attempt used up
    ATTEMPT = auto()  # nobody can say: one attempt is used up
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
        503: _Rule.UNWELL,
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
        Fault.RESET: _Rule.ATTEMPT,
        Fault.TIMEOUT: _Rule.ATTEMPT,
        Fault.GARBLED: _Rule.ATTEMPT,
        Fault.OVERSIZE: _Rule.HOPELESS,
    }
)
_LAST_WORD: Mapping[Fault | None, GaveUp] = MappingProxyType(
    {
        None: GaveUp(code="upstream_unavailable", message="The model server gave no answer."),
        Fault.RESET: GaveUp(code="upstream_unavailable", message="The model server dropped the connection each time."),
        Fault.TIMEOUT: GaveUp(code="request_timeout", message="No answer from the model server in time."),
        Fault.GARBLED: GaveUp(
            code="invalid_backend_response", message="The model server's answer is not a JSON object."
        ),
        Fault.OVERSIZE: GaveUp(
            code="invalid_backend_response", message="The model server's answer is too large to keep."
        ),
    }
)


def judge(*, status: int | None, fault: Fault | None, retry_after: float | None, attempts: int, draw: float) -> Verdict:
    """Say what a reply means for its Request.

    Args:
        status: The HTTP status, if there was one.
        fault: What went wrong, if anything; it weighs more than the status.
        retry_after: Seconds that the backend asks for; anything at all may stand here, it is clamped.
        attempts: Attempts used up so far, this one included if it counts; from 1.
        draw: A random number in [0, 1), for the jitter.
    """
    match _rule(status, fault):
        case _Rule.SUCCEEDED:
            return Done(succeeded=True)
        case _Rule.REFUSED:
            return Done(succeeded=False)
        case _Rule.PRESSURE:
            return Later(after=_patience(retry_after, draw), attempt_used=False, pressure=True, unwell=False)
        case _Rule.UNWELL:
            return Later(after=_patience(retry_after, draw), attempt_used=False, pressure=False, unwell=True)
        case _Rule.ATTEMPT if attempts < ATTEMPTS:
            return Later(after=_backoff(attempts, retry_after, draw), attempt_used=True, pressure=False, unwell=False)
        case _:
            # The last HTTP answer, if there is one, is the line (contract g-27).
            return Done(succeeded=False) if fault is None and status is not None else _LAST_WORD[fault]


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
